"""`make serve`: the real server on a CPU with the built-in pair and SPECPLUG, for trying it out and for load tests.

PORT (default 30000), SPECPLUG_CONFIG (specplug's words, JSON or a file) and SERVE_ARGS (further flags of SGLang's) come from
the environment. Ctrl-C ends it and every process it started. It lives here, since it needs the tests' stand-ins for the
compiled packages that have no CPU build.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
from engines import end_processes, environment, flags, plain_options

DEMO = Path(__file__).parents[2] / "adapters" / "hf" / "specplug_hf" / "demo"


def command(port: int, more: list[str]) -> list[str]:
    """The launch line: the pair, SPECPLUG, room for load; `more` comes last and so has the last word."""
    options = plain_options(
        model_path=DEMO / "target",
        speculative_algorithm="SPECPLUG",
        speculative_draft_model_path=DEMO / "draft",
        host="127.0.0.1",
        port=port,
        max_total_tokens=65536,
        max_running_requests=32,
        log_level="info",
    )
    return [sys.executable, "-m", "sglang.launch_server", *flags(options), *more]


def main() -> int:
    """Start, wait, end; the server's own exit status."""
    line = command(int(os.environ.get("PORT", "30000")), shlex.split(os.environ.get("SERVE_ARGS", "")))
    print(shlex.join(line), flush=True)
    process = psutil.Popen(line, env=os.environ | environment(), start_new_session=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` ends it as Ctrl-C does
    try:
        return process.wait()
    except KeyboardInterrupt:
        print("\nEnding the server.", flush=True)
        return 130
    finally:
        end_processes({process, *_descendants(process)})


def _descendants(process: psutil.Popen) -> set[psutil.Process]:
    try:
        return set(process.children(recursive=True))
    except (psutil.NoSuchProcess, subprocess.SubprocessError):
        return set()


if __name__ == "__main__":
    sys.exit(main())
