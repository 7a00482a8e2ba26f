"""SGLang servers as processes of their own: started together, asked over HTTP, ended with all they started."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from specplug import SpecplugError


class Server:
    """One server. A context manager: healthy inside, gone with its whole process group afterwards."""

    def __init__(self, name: str, model: Path, draft: Path | None, words: Mapping[str, Any] | None, more: str) -> None:
        """`words`: specplug's configuration; None: a plain server."""
        self.name, self.port = name, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = Path(tempfile.mkdtemp(prefix="specplug-bench-")) / f"{name}.log"
        command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(model), "--port", str(self.port)]
        command += ["--nccl-port", str(free_port()), "--sleep-on-idle", "--log-level", "warning"]
        if words is not None:
            command += ["--speculative-algorithm", "SPECPLUG", "--specplug-config", json.dumps(words)]
            if draft is not None and words.get("drafter", "auto") in ("auto", "model"):
                command += ["--speculative-draft-model-path", str(draft)]
        self.command = [*command, *shlex.split(more)]

    def __enter__(self) -> Server:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        return self

    def wait(self, seconds: float = 600) -> None:
        """Until it is healthy. Raises `SpecplugError` with the end of its log if it ends, or is not by then."""
        deadline = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < deadline:
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return
            time.sleep(0.5)
        tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
        raise SpecplugError(f"The server {self.name!r} did not start: {shlex.join(self.command)}\n{tail}")

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
