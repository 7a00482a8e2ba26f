"""Before any speculation: the engine that the other tests run is SGLang as it is, and says what transformers says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import engines
import psutil
import pytest
import torch

NEW_TOKENS = 24
PROMPTS = (
    "def",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
    "import os\nimport sys\n\n\ndef main(argv):\n    for name in argv[1:]:\n",
    "# A comment.\n" * 40 + "def parse(text):\n",
    "x = 1\n",
)


@pytest.fixture(scope="module")
def reference(pair: Any) -> tuple[list[list[int]], list[list[int]]]:
    """The prompts as ids, and what transformers' greedy `generate` makes of each of them alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pair.target)
    model = AutoModelForCausalLM.from_pretrained(pair.target, dtype=torch.float32).eval()
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    options = dict(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
    expected = []
    for ids in prompts:
        answer = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **options)
        expected.append(answer[0, len(ids) :].tolist())
    return prompts, expected


def test_concurrent_prompts_give_what_transformers_gives(pair: Any, reference: Any, tmp_path: Path) -> None:
    """Also: the server that this takes is SGLang's plain one, has the flags it was given, and leaves nothing behind."""
    prompts, expected = reference
    assert len({len(ids) for ids in prompts}) == len(prompts)
    assert all(len(answer) == NEW_TOKENS for answer in expected)
    assert len({tuple(answer) for answer in expected}) == len(expected)
    before, started = set(psutil.Process().children(recursive=True)), set()

    def use() -> None:
        with engines.server(pair.target, "--stream-interval", "7", log=tmp_path / "server.log") as url:
            started.update(set(psutil.Process().children(recursive=True)) - before)
            assert ask(url, prompts) == expected
            assert ask(url, prompts) == expected  # and so it does with the prompts in its cache
            with urllib.request.urlopen(f"{url}/server_info", timeout=60) as answer:
                told = json.load(answer)
            assert [told[name] for name in ("speculative_algorithm", "device", "dtype")] == [None, "cpu", "float32"]
            assert told["stream_interval"] == 7
            raise LookupError("from inside")

    with pytest.raises(LookupError, match="from inside"):
        use()
    assert len(started) >= 3  # tokenizer and HTTP, scheduler, detokenizer
    assert not [process for process in started if engines.is_alive(process)]
    assert "stream_interval" in (tmp_path / "server.log").read_text()


def ask(url: str, prompts: list[list[int]]) -> list[list[int]]:
    """What a server makes of the prompts, all of them sent at once."""
    sampling = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    body = json.dumps({"input_ids": prompts, "sampling_params": sampling}).encode()
    request = urllib.request.Request(f"{url}/generate", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answers:
        return [answer["output_ids"] for answer in json.load(answers)]


def test_sglang_is_the_installed_one_and_the_standins_say_what_they_are() -> None:
    import sglang

    assert Path(sglang.__file__).is_relative_to(sys.prefix)
    for name in sorted(path.name for path in engines.STANDINS.iterdir() if path.name != "__pycache__"):
        module = __import__(name)
        assert Path(module.__file__).is_relative_to(engines.STANDINS)
        assert "test fixture" in module.__doc__


DEATHS = """
import engines, json, os, psutil, signal, subprocess, sys

def generate(running, prompts):
    sampling = {"temperature": 0.0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    return [answer["output_ids"] for answer in running.generate(input_ids=prompts, sampling_params=sampling)]

def failure(call, *arguments):
    try:
        call(*arguments)
    except RuntimeError as error:
        return str(error)

def live_and_die():
    with engines.engine(target) as running:
        started.extend(psutil.Process().children(recursive=True))
        print("a second one:", failure(engines.engine(target).__enter__))
        print("plain:", generate(running, prompts) == expected)
        scheduler, *_ = running.get_all_child_pids()
        os.kill(scheduler, signal.SIGKILL)
        print("waiting:", failure(generate, running, prompts))
        print("later:", failure(generate, running, prompts), "/", failure(running.flush_cache))
        raise LookupError("from inside")

if __name__ == "__main__":
    target, prompts, expected, started = sys.argv[1], *json.loads(sys.argv[2]), []
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        live_and_die()
    except LookupError as error:
        print("raised:", error)
    left = [p for p in started if engines.is_alive(p) and "resource_tracker" not in " ".join(p.cmdline())]
    print(len(started), "were there, left:", [p.pid for p in left] == [other.pid])
    print("not started:", failure(engines.engine(target, max_total_tokens=-5).__enter__))
    other.communicate(b"\\n")
    print("other:", other.returncode)
"""


@pytest.mark.slow
def test_a_dying_engine_is_an_error_and_takes_nothing_along(pair: Any, reference: Any, tmp_path: Path) -> None:
    """In a process of its own, since without the care taken SGLang would end this one."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ["PYTHONPATH"]])
    program = DEATHS.replace("NEW_TOKENS", str(NEW_TOKENS))
    command = [sys.executable, "-W", "ignore", "-c", program, str(pair.target), json.dumps(reference)]
    with (tmp_path / "said").open("w") as said:  # a pipe would stay open as long as anything that it started
        subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, stdout=said, timeout=300, check=True)
    assert (tmp_path / "said").read_text().splitlines() == [
        "a second one: this process has an engine already, and SGLang keeps its configuration once per process",
        "plain: True",
        "waiting: Event loop stopped before Future completed.",
        f"later: {engines.DIED} / {engines.DIED}",
        "raised: from inside",
        "4 were there, left: True",  # the other one, scheduler, detokenizer, Python's resource tracker
        f"not started: {engines.DIED}",
        "other: 0",
    ]
