"""Under SPECPLUG when room is tight: retraction, chunked prompts, larger pages, two ranks; and nothing leaks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import references
import setups
from serving import served

NEW_TOKENS = 48
CASES = {
    "retraction": (
        "model-tree",
        {"max_total_tokens": 900, "max_running_requests": 12, "schedule_conservativeness": 0.01},
    ),
    "pages": ("self-tree", {"page_size": 16}),
    "chunks": ("model-chain", {"chunked_prefill_size": 32}),
    "no-radix": ("auto", {"disable_radix_cache": True}),
    "ranks": ("auto", {"tp_size": 2, "max_running_requests": 8}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_tight_server_says_what_a_roomy_one_says(case: str, pair: Any, tmp_path: Path) -> None:
    name, more = CASES[case]
    prompts = references.prompts(16, shortest=10, longest=90)
    options, log = setups.options(pair, name, **more), tmp_path / "log"
    with served(pair, options, log) as ask:
        answers = ask(prompts, NEW_TOKENS)
        again = ask(prompts, NEW_TOKENS)  # whatever leaked before would show now
    assert answers == again == [references.greedy(prompt, NEW_TOKENS) for prompt in prompts]
    text = log.read_text(errors="replace")
    assert "memory leak" not in text and "drafting failed" not in text
    if case == "retraction":
        assert re.search(r"[Rr]etract", text)
    if case == "ranks":
        assert "TP1" in text


FAULT = """
from specplug.drafters.prompt_lookup import PromptLookup

calls = 0
sound = PromptLookup.draft


def draft(self, request):
    global calls
    calls += 1
    if calls % 3 == 0:
        raise ValueError("a drafter's own fault")
    return sound(self, request)


PromptLookup.draft = draft
"""


@pytest.mark.slow
def test_a_drafter_that_fails_costs_no_request_its_answer(
    pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAULT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    prompts, log = references.prompts(6), tmp_path / "log"
    with served(pair, setups.options(pair, "lookup"), log) as ask:
        assert ask(prompts, NEW_TOKENS) == [references.greedy(prompt, NEW_TOKENS) for prompt in prompts]
    text = log.read_text(errors="replace")
    assert "this round goes on without (failure 1)" in text and "a drafter's own fault" in text
