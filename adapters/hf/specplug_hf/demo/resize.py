"""Models made from trained ones: more layers, a narrower MLP, the mean of two."""

from __future__ import annotations

import torch
from transformers import LlamaForCausalLM

from .shapes import Shape


@torch.no_grad()
def deepen(model: LlamaForCausalLM, shape: Shape, layers: int) -> LlamaForCausalLM:
    """A model of `layers` layers, a multiple of `model`'s, that computes the same function.

    Each layer is followed by copies of itself whose output matrices are zero.
    """
    old = model.config.num_hidden_layers
    if layers % old:
        raise ValueError(f"{old} layers cannot grow to {layers}")
    deep = LlamaForCausalLM(shape.config(layers, model.config.vocab_size)).to(model.device)
    deep.model.embed_tokens.load_state_dict(model.model.embed_tokens.state_dict())
    deep.model.norm.load_state_dict(model.model.norm.state_dict())
    for i, layer in enumerate(deep.model.layers):
        layer.load_state_dict(model.model.layers[i // (layers // old)].state_dict())
        if i % (layers // old):
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return deep


@torch.no_grad()
def narrow(model: LlamaForCausalLM, shape: Shape) -> LlamaForCausalLM:
    """A model of `shape`, no wider inside its MLPs than `model`, that keeps each MLP's largest neurons.

    A neuron's size is the product of the norms of its gate, up and down weights.
    """
    old = model.config.intermediate_size
    if shape.inner > old:
        raise ValueError(f"an MLP of {old} neurons cannot be narrowed to {shape.inner}")
    slim = LlamaForCausalLM(shape.config(model.config.num_hidden_layers, model.config.vocab_size)).to(model.device)
    weights = model.state_dict()
    for i in range(model.config.num_hidden_layers):
        gate, up, down = (f"model.layers.{i}.mlp.{part}_proj.weight" for part in ("gate", "up", "down"))
        size = weights[gate].norm(dim=1) * weights[up].norm(dim=1) * weights[down].norm(dim=0)
        kept = size.topk(shape.inner).indices.sort().values
        weights |= {gate: weights[gate][kept], up: weights[up][kept], down: weights[down][:, kept]}
    slim.load_state_dict(weights)
    return slim


@torch.no_grad()
def mean(first: LlamaForCausalLM, second: LlamaForCausalLM) -> LlamaForCausalLM:
    """The model half-way between two of one shape, of which the second was trained on from the first.

    Such a mean keeps most of what each is good at (Wortsman et al., arXiv 2203.05482).
    """
    between = LlamaForCausalLM(first.config).to(first.device)
    theirs = second.state_dict()
    between.load_state_dict({name: (own + theirs[name]) / 2 for name, own in first.state_dict().items()})
    return between
