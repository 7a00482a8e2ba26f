"""A launch that cannot be served says why in one line, before anything runs; and SPECPLUG is never merely unknown."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import engines
import pytest

REFUSALS = {
    "a backend that takes no tree mask": (
        ["--attention-backend", "triton"],
        "needs --attention-backend torch_native",
    ),
    "pipeline parallelism": (["--pp-size", "2"], "does not serve --pp-size 2: a round needs the whole target"),
    "a misspelt drafter": (
        ["--specplug-config", '{"drafter": "slef"}'],
        "Unknown drafter 'slef'. Did you mean 'self'?",
    ),
    "an unknown word": (["--specplug-config", '{"draftr": "self"}'], "Unknown word of --specplug-config 'draftr'"),
    "a drafter that SGLang cannot serve": (
        ["--specplug-config", '{"drafter": "layer_skip"}'],
        "Drafter 'layer_skip' needs layer_skipping, which SGLang cannot give; choose another drafter or KV policy.",
    ),
    "a KV policy that chooses by layer and head": (
        ["--specplug-config", '{"drafter": "self", "kv_policy": "snapkv"}'],
        "Drafter 'self' needs queries, which SGLang cannot give; choose another drafter or KV policy.",
    ),
    "a draft that is not given": (["--specplug-config", '{"drafter": "model"}'], "needs a draft"),
}


def launch(pair: Any, *more: str, **variables: str) -> str:
    """What a launch that ends by itself has said."""
    options = engines.flags(
        engines.plain_options(model_path=pair.target, port=engines.free_port(), attention_backend=None)
    )
    command = [sys.executable, "-m", "sglang.launch_server", *options, "--speculative-algorithm", "SPECPLUG", *more]
    done = subprocess.run(
        command,
        env=os.environ | engines.environment() | variables,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode != 0
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSALS)
def test_refused_with_the_reason(name: str, pair: Any) -> None:
    more, reason = REFUSALS[name]
    said = launch(pair, *more)
    assert reason in said and "Unknown speculative algorithm" not in said


@pytest.mark.slow
def test_a_plugin_that_cannot_be_set_up_says_so(pair: Any, tmp_path: Any) -> None:
    """Another version of SGLang, as far as the adapter can see."""
    (tmp_path / "sitecustomize.py").write_text("import specplug_sglang.versions as v\nv.LAST = v.FIRST = '0.4.1'\n")
    path = os.pathsep.join([str(tmp_path), engines.environment()["PYTHONPATH"]])
    said = launch(pair, PYTHONPATH=path)
    assert (
        "SPECPLUG cannot be used: UnsupportedError: SGLang 0.5.23 is installed; this specplug serves SGLang 0.4.1"
        in said
    )
    assert "Unknown speculative algorithm" not in said
