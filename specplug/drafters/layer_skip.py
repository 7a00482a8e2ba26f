"""`layer_skip`: the target with sublayers left out drafts for itself, over its own cache (SWIFT, arXiv 2410.06916; Draft & Verify,
arXiv 2309.08168).

No second model and no second cache: attention and MLP sublayers are left out of a draft's forwards, so that what comes in goes out,
and the target's own pass writes all layers' keys and values of what it verifies. A draft ends below a token that it is not
sure of. Which sublayers a model can spare depends on the model and the text: `specplug train layer-skip` looks for them.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, cast

from specplug.drafters.expand import check_stop
from specplug.drafters.running import RunningDraft
from specplug.errors import OptionError
from specplug.host import SkippedLayers
from specplug.kv_policies import Full, KVPolicy, check_policy
from specplug.needs import Need
from specplug.tree import TreeShape
from specplug.trees import Chain


class LayeredHost(Protocol):
    """What a host with Need.LAYER_SKIPPING tells besides."""

    num_layers: int  # the target's


@dataclass
class LayerSkip(RunningDraft):
    """`layers`: what is left out, as the file of a search or as such; None: `skip` of all sublayers, evenly spread.

    `stop`: no further drafting below a token that the draft gave a lower probability; 0: never. See `expand`.
    """

    skip: float = 0.45
    layers: str | os.PathLike[str] | SkippedLayers | None = None
    kv_policy: KVPolicy = Full()
    stop: float = 0.8
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TARGET_RUNNER, Need.LAYER_SKIPPING})

    def __post_init__(self) -> None:
        check_policy("layer_skip", self.kv_policy)
        check_stop("layer_skip", self.stop)
        if not 0 < self.skip < 1:
            raise OptionError(f"layer_skip: skip={self.skip} must be a share between 0 and 1.")
        self._found = None if isinstance(self.layers, SkippedLayers | None) else read_layers(self.layers)

    @property
    def key(self) -> str:
        left_out = getattr(self, "_skipped", self.layers)
        named = _named(left_out) if isinstance(left_out, SkippedLayers) else left_out or f"skip {self.skip:g}"
        return f"{type(self).__name__}[{self.kv_policy.key}, {named}, stop {self.stop:g}]"

    def shapes(self) -> tuple[TreeShape, ...]:
        return tuple(Chain(length).build() for length in (3, 2, 5, 8))

    def skipped(self, model: str, num_layers: int) -> SkippedLayers:
        """What is left out of a target of `num_layers` layers whose name is `model` (Host.identity).

        Raises `OptionError` if that was found for another model, or names layers that there are not.
        """
        if self._found is not None:
            return self._found.of(model, num_layers)
        if self.layers is None:
            return evenly_spread(num_layers, self.skip)
        assert isinstance(self.layers, SkippedLayers)
        _check_range("layers", self.layers, num_layers)
        return self.layers

    def setup(self) -> None:
        self._skipped = self.skipped(self.host.identity[0], cast(LayeredHost, self.host).num_layers)
        self._runner = self.host.runner(None, self.kv_policy, skipped=self._skipped)


@dataclass(frozen=True, slots=True)
class FoundLayers:
    """What a search has found: for which model, and in which file it stands."""

    file: str
    model: str
    skipped: SkippedLayers

    def of(self, model: str, num_layers: int) -> SkippedLayers:
        """The same, if it is of `model`; else `OptionError`."""
        if model != self.model:
            raise OptionError(
                f"layer_skip: {self.file} was found for {self.model!r}; the target is {model!r}. Search for this one: "
                "specplug train layer-skip."
            )
        _check_range(self.file, self.skipped, num_layers)
        return self.skipped


def read_layers(path: str | os.PathLike[str]) -> FoundLayers:
    """What `specplug train layer-skip` wrote: JSON with `model`, and layers from 0 in `attention` and `mlp`.

    `OptionError` names the file and what is wrong with it.
    """
    file = os.fspath(path)
    try:
        content = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"layer_skip: layers={file}: cannot be read: {error.strerror or error}.") from error
    except ValueError as error:  # also text that is no UTF-8
        raise OptionError(f"layer_skip: layers={file}: not JSON: {error}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), str):
        raise OptionError(f"layer_skip: layers={file}: no model is named in it; see specplug train layer-skip.")
    parts = [content.get(name) for name in ("attention", "mlp")]
    for name, part in zip(("attention", "mlp"), parts, strict=True):
        if not isinstance(part, list) or not all(type(layer) is int for layer in part):
            raise OptionError(f"layer_skip: layers={file}: {name!r} must be a list of layers from 0, got {part!r}.")
    attention, mlp = parts
    return FoundLayers(file, content["model"], SkippedLayers(frozenset(attention or ()), frozenset(mlp or ())))


def evenly_spread(num_layers: int, share: float) -> SkippedLayers:
    """`share` of the `2 num_layers` sublayers, at least one, half of them attention; never of the first or the last layer."""
    inner = num_layers - 2
    if inner < 1:
        raise OptionError(
            f"layer_skip: a target of {num_layers} layers has none between its first and its last; name what to leave "
            "out (layers=...), or choose another drafter."
        )
    count = min(2 * inner, max(1, round(share * 2 * num_layers)))
    return SkippedLayers(_spread(count - count // 2, inner), _spread(count // 2, inner))


def _spread(count: int, inner: int) -> frozenset[int]:
    return frozenset(1 + (2 * i + 1) * inner // (2 * count) for i in range(count))


def _check_range(where: str, skipped: SkippedLayers, num_layers: int) -> None:
    for name, layers in (("attention", skipped.attention), ("mlp", skipped.mlp)):
        outside = sorted(layer for layer in layers if not 0 <= layer < num_layers)
        if outside:
            raise OptionError(
                f"layer_skip: {where} leaves out the {name} of layer {outside[0]}; the target's layers are 0 to "
                f"{num_layers - 1}."
            )


def _named(skipped: SkippedLayers) -> str:
    parts = (("attention", skipped.attention), ("mlp", skipped.mlp))
    return ", ".join(f"{name} {' '.join(map(str, sorted(layers)))}" for name, layers in parts if layers) or "nothing"
