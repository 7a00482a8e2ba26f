"""The pair's recipe for a GPU: mixed precision, longer sequences. Here for a handful of steps on a CPU, tiny."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from specplug_hf.demo import train
from specplug_hf.demo.agreement import agreement
from specplug_hf.demo.shapes import DRAFT, TARGET, Shape
from specplug_hf.demo.trainer import Phase, Recipe, Trainer, next_token_loss
from specplug_hf.training import continuations
from specplug_hf.training.continuations import Continuations, write_continuations
from specplug_hf.training.hardware import precision

TINY = Shape(layers=2, hidden=16, inner=24, heads=2, kv_heads=1)
CPU = torch.device("cpu")


def job(tmp_path: Path, context: int, dtype: torch.dtype | None = None, start: Path | None = None) -> train.Job:
    nothing = torch.zeros(0, dtype=torch.int64)
    return train.Job(1.0, 0, 0, tmp_path, start, CPU, None, nothing, nothing, context, dtype)  # type: ignore[arg-type]


def test_a_longer_context_is_the_last_phases_length_and_has_positions(tmp_path: Path) -> None:
    longer = job(tmp_path, 16384)
    assert [phase.length for phase in longer.phases(train.TARGET_PHASES)] == [512, 512, 4096, 16384]
    assert [phase.until for phase in longer.phases(train.TARGET_PHASES)] == [p.until for p in train.TARGET_PHASES]
    assert [phase.length for phase in job(tmp_path, 1024).phases(train.TARGET_PHASES)] == [512, 512, 1024, 1024]
    assert job(tmp_path, train.CONTEXT).phases(train.TARGET_PHASES) == train.TARGET_PHASES
    assert longer.shape(TARGET) == TARGET  # the same size, and it had that many positions
    assert job(tmp_path, 32768).shape(DRAFT).config().max_position_embeddings == 32768


def test_a_model_to_go_on_from_gets_the_positions(tmp_path: Path) -> None:
    LlamaForCausalLM(TINY.config()).save_pretrained(tmp_path / "target")
    longer = job(tmp_path, 32768, start=tmp_path)
    assert longer.start_from("target").config.max_position_embeddings == 32768
    assert job(tmp_path, 512, start=tmp_path).start_from("target").config.max_position_embeddings == 16384


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize(
    ("dtype", "device", "expected"),
    [
        (None, "cpu", None),
        (None, "cuda", torch.bfloat16),
        (torch.bfloat16, "cpu", torch.bfloat16),
        (torch.float32, "cuda", None),
    ],
)
def test_products_are_computed_in(dtype: torch.dtype | None, device: str, expected: torch.dtype | None) -> None:
    context = precision(torch.device(device), dtype)
    assert getattr(context, "fast_dtype", None) == expected and getattr(context, "device", device) == device


def test_mixed_precision_keeps_float32_weights_and_learns(tmp_path: Path) -> None:
    data = torch.arange(400) % 7  # easily learnt
    seen, losses = [], []

    def watched(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
        seen.append((ids.shape[1], model(input_ids=ids, use_cache=False).logits.dtype))
        loss = next_token_loss(model, ids)
        losses.append(float(loss.detach()) / ids.numel())
        return loss

    phases = (Phase(0.5, 16, 2), Phase(1.0, 64, 2))
    recipe = Recipe(phases, tokens=60 * 64, batch_tokens=64, micro_tokens=32, dtype=torch.bfloat16)
    model = Trainer(TINY, recipe, data, tmp_path / "state", CPU, watched).run()
    assert set(seen) == {(16, torch.bfloat16), (64, torch.bfloat16)}
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_the_target_writes_in_the_precision_that_was_asked_for(tmp_path: Path, dtype: torch.dtype | None) -> None:
    target, seen = LlamaForCausalLM(TINY.config()), []
    target.register_forward_hook(lambda model, inputs, output: seen.append(output.logits.dtype))
    data, plan = torch.arange(100) % 7, Continuations(rows=2, prompt=4, new=3, batches=2)  # one greedy, one drawn
    assert write_continuations(target, data, plan, tmp_path, 0, dtype).shape == (4, 7)
    agreement(target, LlamaForCausalLM(TINY.config()), data[:8].view(2, 4), new=2, dtype=dtype)
    assert seen == [dtype or torch.float32] * (2 * 3 + 2)


def test_the_command_for_a_gpu_runs_with_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [(f"{i}.py", f"def f{i}(a, b):\n    return a + {i} * b\n\n\n" * 40) for i in range(60)]
    monkeypatch.setattr(train, "library_files", lambda: files)
    for name in ("TARGET", "DRAFT"):
        monkeypatch.setattr(train, name, TINY)
    monkeypatch.setattr(train, "TARGET_PHASES", (Phase(0.5, 32, 2), Phase(1.0, 64, 2)))
    monkeypatch.setattr(train, "DRAFT_PHASES", (Phase(0.5, 32, 2), Phase(1.0, 64, 2)))
    own = [train.OwnTexts("own", Continuations(rows=4, prompt=8, new=8), 0.2, 0.2, remembered=3)]
    monkeypatch.setattr(train, "OWN_TEXTS", own)
    lengths: list[tuple[list[int], torch.dtype | None]] = []
    monkeypatch.setattr(train, "Trainer", _recording(lengths))
    written: set[torch.dtype | None] = set()
    monkeypatch.setattr(
        continuations, "precision", lambda device, dtype: written.add(dtype) or precision(device, dtype)
    )
    options = ["--device", "cpu", "--dtype", "bfloat16", "--context", "1k", "--tokens", "12000"]
    train.main(["all", "--out", str(tmp_path), *options])
    assert "greedy agreement" in capsys.readouterr().out
    assert lengths == [([32, 1024], torch.bfloat16), ([32, 1024], torch.bfloat16), ([16], torch.bfloat16)]
    assert written == {torch.bfloat16}
    saved = json.loads((tmp_path / "draft" / "config.json").read_text())
    assert (saved["max_position_embeddings"], saved["hidden_size"]) == (16384, TINY.hidden)


def _recording(lengths: list[tuple[list[int], torch.dtype | None]]) -> type[Trainer]:
    class Recording(Trainer):
        def __init__(self, shape: Shape, recipe: Recipe, *rest: Any, **more: Any) -> None:
            lengths.append(([phase.length for phase in recipe.phases], recipe.dtype))
            super().__init__(shape, recipe, *rest, **more)

    return Recording


@pytest.mark.parametrize(("text", "tokens"), [("16k", 16384), ("8704", 8704)])
def test_contexts_are_written_as_everywhere(text: str, tokens: int) -> None:
    assert train.parse(["--out", "x", "--context", text]).context == tokens
    with pytest.raises(SystemExit):
        train.parse(["--out", "x", "--context", "many"])
