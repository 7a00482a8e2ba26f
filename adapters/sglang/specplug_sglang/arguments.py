"""The flag `--specplug-config` and the keyword `sgl.Engine(specplug_config=...)`.

Either becomes the environment variable SPECPLUG_CONFIG, which every process of the server inherits. This is all that is
changed in SGLang beside its registries; docs/sglang.md lists it with the reasons.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from specplug_sglang.config import VARIABLE, read_config

FLAG = "--specplug-config"


def install() -> None:
    """Register the hooks on the command line, which SGLang applies when all plugins are loaded, and the keyword."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType  # noqa: PLC0415  (SGLang's)

    record = "sglang.srt.server_args.ServerArgs"
    HookRegistry.register(f"{record}.add_cli_args", add_flag, HookType.AFTER)
    HookRegistry.register(f"{record}.from_cli_args", take_flag, HookType.BEFORE)
    engine = sys.modules.get("sglang.srt.entrypoints.engine")  # it loads plugins in the middle of its `__init__`
    if engine is not None:
        engine.Engine.server_args_class = TakesKeyword(engine.Engine.server_args_class)


def words_of(server_args: Any) -> dict[str, Any]:
    """The configuration of the server that this process belongs to. Raises `OptionError` if it cannot be read."""
    return read_config(None)


def add_flag(result: Any, parser: argparse.ArgumentParser, *_: Any) -> None:
    """After SGLang's own flags: ours."""
    parser.add_argument(
        FLAG,
        type=str,
        default=None,
        metavar="JSON|FILE",
        help="specplug's set-up for --speculative-algorithm SPECPLUG, in the words of specplug.Speculator, as JSON or a file "
        f"of it (also {VARIABLE}); see docs/sglang.md.",
    )


def take_flag(cls: type, args: argparse.Namespace) -> None:
    """Before the flags become a record: ours goes to the environment, checked."""
    given = getattr(args, "specplug_config", None)
    if given is not None:
        os.environ[VARIABLE] = json.dumps(read_config(given))


class TakesKeyword:
    """Stands before an engine's record class: `specplug_config` goes to the environment, all else to the record.

    A configuration that an earlier engine of this process was given is none of a later one's.
    """

    def __init__(self, record: type) -> None:
        self._record = record
        self._given: str | None = None

    def __call__(self, *args: Any, specplug_config: str | Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
        if specplug_config is not None:
            self._given = os.environ[VARIABLE] = json.dumps(read_config(specplug_config))
        elif self._given is not None and os.environ.get(VARIABLE) == self._given:
            del os.environ[VARIABLE]
            self._given = None
        return self._record(*args, **kwargs)
