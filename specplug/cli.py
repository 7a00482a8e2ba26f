"""The command `specplug`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from specplug.errors import SpecplugError
from specplug.plugins import plugins

# Commands that come with an extra: what to install when they are asked for and missing.
EXTRAS = {
    "demo": "hf",
    "bench": "hf",
    "calibrate": "hf",
    "policies": "hf",
    "roofline": "hf",
    "trace": "hf",
    "train": "hf",
    "bench-sglang": "sglang",
    "conformance": "conformance",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status. Errors of ours are one line and status 2."""
    given = by_adapter(list(sys.argv[1:] if arguments is None else arguments))
    parser = argparse.ArgumentParser(prog="specplug", description="Speculative decoding as a plugin.")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name in plugins().names("commands"):
        plugins().get("commands", name).factory(subparsers)
    if given and given[0] in EXTRAS and given[0] not in plugins().names("commands"):
        print(f"specplug {given[0]} is not installed: pip install 'specplug[{EXTRAS[given[0]]}]'", file=sys.stderr)
        return 2
    parsed = parser.parse_args(given)
    try:
        return int(parsed.run(parsed))
    except SpecplugError as error:
        print(f"specplug: {error}", file=sys.stderr)
        return 2


def by_adapter(given: list[str]) -> list[str]:
    """`bench --adapter NAME ...` is the command `bench-NAME ...`: adapters measure different things. `hf` is the default."""
    if given[:1] != ["bench"]:
        return given
    for place, word in enumerate(given):
        name, width = (given[place + 1], 2) if word == "--adapter" and place + 1 < len(given) else (word[10:], 1)
        if word == "--adapter" or word.startswith("--adapter="):
            rest = given[1:place] + given[place + width :]
            return ["bench" if name == "hf" else f"bench-{name}", *rest]
    return given


if __name__ == "__main__":
    sys.exit(main())
