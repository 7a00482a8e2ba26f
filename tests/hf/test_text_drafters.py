"""Drafters that look texts up, and merged trees, in `generate`: the same output, and no worse than prompt lookup on real texts."""

import json

import pytest
import torch
from generate_tools import PAD, prompt, same, tiny_tokenizer

from specplug import Need, Speculator, UnsupportedError
from specplug.corpus.files import write_tokens
from specplug.drafters import ModelDraft, PromptLookup, SelfDraft
from specplug.drafters.base import DraftRequest
from specplug.drafters.merged import Merged
from specplug.drafters.retrieval_corpus import RetrievalCorpus
from specplug.drafters.suffix import Suffix
from specplug.host import Batch
from specplug.kv_policies import Streaming
from specplug.tree import TreeShape
from specplug.trees import Chain
from specplug.verify import verify_greedy
from specplug_conformance.llama.tiny import tiny
from specplug_hf import tokenizer as tokenizer_module
from specplug_hf.demo import prompts

NEW = dict(max_new_tokens=40, pad_token_id=PAD)
TREES = ("chain:length=6", "sequoia:size=9,depth=4")


def speculator(drafter, tree, **more):
    return Speculator(drafter=drafter, tree=tree, controller="fixed", **more)


def merged(models, kind):
    draft = ModelDraft(models.draft)
    windowed = ModelDraft(models.draft, Streaming(2, 5))
    return {
        "lookups": [Suffix(), PromptLookup(1)],
        "model": [PromptLookup(1), draft],
        "window": [windowed, Suffix()],
        "self": [SelfDraft(Streaming(2, 5)), draft, Suffix()],
    }[kind]


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize(("rows", "padding"), [(1, "none"), (3, "left"), (3, "holes")])
def test_suffix_says_what_plain_generation_says(fp64, rows, padding, tree):
    """Twice: the second time the others' texts are there, and are what will be said."""
    inputs = prompt(rows, padding)
    spec = speculator(Suffix(), tree)
    plain = fp64.target.generate(**inputs, **NEW)
    same(fp64.target.generate(**inputs, assistant=spec, **NEW), plain)
    first = spec.stats.accepted_length
    same(fp64.target.generate(**inputs, assistant=spec, **NEW), plain)
    assert spec.stats.accepted_length > max(first, 3)


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize(("rows", "padding"), [(1, "none"), (3, "left")])
@pytest.mark.parametrize("kind", ["lookups", "model", "window", "self"])
def test_merged_trees_say_what_plain_generation_says(fp64, kind, rows, padding, tree):
    inputs = prompt(rows, padding)
    spec = speculator(Merged(merged(fp64, kind)), tree)
    same(fp64.target.generate(**inputs, assistant=spec, **NEW), fp64.target.generate(**inputs, **NEW))
    assert spec.stats.accepted > 0


def test_what_a_draft_model_has_read_is_right_after_others_nodes_were_accepted(fp64):
    """A merged draft accepts as much as it would alone, round by round: none of the lookup's KV is taken for its own."""
    inputs = prompt(2, "left")
    plain = fp64.target.generate(**inputs, **NEW)
    drafter = Merged([Suffix(), ModelDraft(fp64.target)])  # a draft that is always right, if it reads what was said
    spec = speculator(drafter, "sequoia:size=8,depth=4")
    for _ in range(2):  # the second time the lookup is right as well
        same(fp64.target.generate(**inputs, assistant=spec, **NEW), plain)
        assert spec.stats.accepted_length >= 3


@pytest.mark.parametrize("tree", TREES)
def test_a_corpus_of_tokens(fp64, tmp_path, tree):
    inputs = prompt(3, "left")
    plain = fp64.target.generate(**inputs, **NEW)
    file = str(tmp_path / "said.safetensors")
    write_tokens(file, list(plain[:, -40:]))
    spec = speculator(RetrievalCorpus(file), tree)
    same(fp64.target.generate(**inputs, assistant=spec, **NEW), plain)
    assert spec.stats.accepted_length > 3


@pytest.fixture
def saved(tmp_path):
    """A tiny model with a tokenizer beside it, and its folder."""
    folder = tmp_path / "model"
    tiny_tokenizer().save_pretrained(folder)
    model = tiny(dtype="float64")
    model.name_or_path = str(folder)
    return model


def test_a_corpus_of_text_is_read_by_the_targets_tokenizer(saved, tmp_path):
    inputs = prompt(2, "left")
    plain = saved.generate(**inputs, **NEW)
    said = tiny_tokenizer().batch_decode(plain[:, -40:].clamp(min=2))
    (tmp_path / "said.txt").write_text("".join(said))
    spec = speculator(RetrievalCorpus(str(tmp_path / "said.txt")), "chain:length=6")
    same(saved.generate(**inputs, assistant=spec, **NEW), plain)
    assert spec.stats.accepted_length > 2


def test_tokens_are_the_tokenizers_and_no_special_ones(saved):
    found = tokenizer_module.tokenize(saved, "a b")
    assert (
        found.tolist() == tiny_tokenizer()("a b", add_special_tokens=False)["input_ids"] and found.dtype == torch.int64
    )
    assert tokenizer_module.has_tokenizer(saved)


def test_a_model_without_a_tokenizer_is_refused_before_anything_runs(fp64, saved, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("some text")
    assert not tokenizer_module.has_tokenizer(fp64.target)
    with pytest.raises(UnsupportedError, match=r"needs tokenizer, which HFHost cannot give"):
        fp64.target.generate(**prompt(1), assistant=speculator(RetrievalCorpus(str(file)), "auto"), **NEW)
    assert RetrievalCorpus(str(file)).required == {Need.HISTORY, Need.TOKENIZER}
    bare = tmp_path / "bare"
    bare.mkdir()
    saved.name_or_path = str(bare)
    assert not tokenizer_module.has_tokenizer(saved)


def test_a_tokenizer_that_cannot_be_loaded_is_named(saved, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "tokenizer.json").write_text(json.dumps({"nothing": "useful"}))
    saved.name_or_path = str(broken)
    with pytest.raises(UnsupportedError, match="The tokenizer of '.*broken' cannot be loaded"):
        tokenizer_module.tokenize(saved, "text")


# --- on real texts, as if a target wrote them


def written_so_far(text, end):
    return Batch(
        rows=(0,),
        roots=text[end - 1 : end],
        lengths=torch.tensor([end - 1]),
        seeds=torch.zeros(1, dtype=torch.int64),
        sampling=False,
        context=end - 1,
        room=1000,
        history=text[None],
        history_ends=torch.tensor([end]),
        history_starts=torch.tensor([0]),
    )


def accepted_length(drafter, text, start, shape):
    """Tokens a round, and draft tokens proposed, when a target writes `text` from `start` on."""
    end, rounds, proposed = start, 0, 0
    while end + shape.depth < len(text):
        trees = drafter.draft(DraftRequest(written_so_far(text, end), shape))
        columns = end + trees.depths.expand(1, -1)
        end += 1 + int(verify_greedy(trees, text[columns]).num_accepted)
        rounds, proposed = rounds + 1, proposed + trees.num_nodes - 1
    return (end - start) / rounds, proposed / rounds


@pytest.mark.parametrize("length", [4, 10])
def test_suffix_and_merged_accept_no_less_than_prompt_lookup(length):
    """Over three of the texts that ship: trees of as many nodes; chains nearly as much, of four fifths of the proposed tokens at most."""
    chain, found = Chain(length).build(), {}
    tree = TreeShape.from_parents([-1, *range(length - 1), 0])
    makers = {
        "lookup": (PromptLookup, chain),
        "chain": (Suffix, chain),
        "tree": (Suffix, tree),
        "merged": (lambda: Merged([Suffix(), PromptLookup()]), chain),
    }
    for name, (make, shape) in makers.items():
        measured = []
        for index in (0, 8, 16):
            drafter = make().open(type("Host", (), {"vocab_size": 100_000})())
            measured.append(accepted_length(drafter, prompts.prompt(800, index)[0], 400, shape))
        found[name] = [sum(each) / len(each) for each in zip(*measured, strict=True)]
    lengths, proposed = ({name: figures[i] for name, figures in found.items()} for i in (0, 1))
    assert lengths["tree"] >= lengths["lookup"] and lengths["chain"] >= 0.98 * lengths["lookup"], found
    assert proposed["tree"] <= 0.8 * proposed["lookup"] and proposed["chain"] <= 0.8 * proposed["lookup"], found
    assert lengths["merged"] >= 0.99 * lengths["tree"], found
