"""A real server under SPECPLUG and a client that asks it over HTTP."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import engines

GREEDY = {"temperature": 0.0}


@contextmanager
def served(pair: Any, options: dict[str, Any], log: Path) -> Iterator[Callable[..., list[list[int]]]]:
    """A server whose log is in `log`. Yields what asks it for answers to prompts, all at once; `params` are SGLang's."""
    options = dict(options, specplug_config=json.dumps(options["specplug_config"]))
    with engines.server(pair.target, *engines.flags(options), log=log) as url:

        def ask(prompts: list[list[int]], new_tokens: int, params: dict[str, Any] | None = None) -> list[list[int]]:
            wanted = (params or GREEDY) | {"max_new_tokens": new_tokens, "ignore_eos": True}
            body = json.dumps({"input_ids": prompts, "sampling_params": wanted}).encode()
            request = urllib.request.Request(f"{url}/generate", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=300) as response:
                return [answer["output_ids"] for answer in json.loads(response.read())]

        yield ask
