"""Real SGLang engines and servers on a CPU, for tests: how they are set up, started and ended with all they started.

An engine takes some twenty seconds to start, so tests share one where they can. SGLang keeps its configuration once per
process, hence at most one engine at a time in a test process; a server has processes of its own.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import psutil

STANDINS = Path(__file__).parent / "standins"
MODELS = ("llama",)  # the only modules of `sglang.srt.models` that a scheduler looks into: all take it seconds
DIED = "a process of the SGLang engine died; its log says why"


_current: list[Any] = []  # the model of the engine that this process has, if it has one


def environment() -> dict[str, str]:
    """The variables of a CPU engine: SGLang's own switch, one thread, no network, and the stand-ins on the path.

    Two ranks of tensor parallelism want to be told where to run even where nothing binds them, and would compile a
    function with a C++ compiler and setuptools: it runs uncompiled.
    """
    before = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(STANDINS)]
    return {
        "SGLANG_USE_CPU_ENGINE": "1",
        "SGLANG_DISABLED_MODEL_ARCHS": ",".join(sorted(_model_modules() - set(MODELS))),
        "SGLANG_CPU_OMP_THREADS_BIND": "0|1",
        "TORCHDYNAMO_DISABLE": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "PYTHONPATH": os.pathsep.join([str(STANDINS), *before]),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _model_modules() -> set[str]:
    """The names of SGLang's modules with models, found without importing SGLang."""
    spec = importlib.util.find_spec("sglang")
    folders = (
        [] if spec is None else [Path(place) / "srt" / "models" for place in spec.submodule_search_locations or ()]
    )
    return {module.stem for folder in folders for module in folder.glob("*.py")} - {"__init__"}


def plain_options(**more: Any) -> dict[str, Any]:
    """The engine's keyword arguments: float32 on a CPU, a small cache, no speculation; `more` adds to and overrides them."""
    return {
        "device": "cpu",
        "dtype": "float32",
        "attention_backend": "torch_native",
        "sampling_backend": "pytorch",
        "disable_cuda_graph": True,
        "mem_fraction_static": 0.3,
        "max_total_tokens": 4096,
        "max_running_requests": 8,
        "nccl_port": free_port(),
        "log_level": "error",
    } | more


def flags(options: dict[str, Any]) -> list[str]:
    """Keyword arguments as a command line: `True` is a bare flag, `False` and `None` leave it out."""
    words: list[str] = []
    for name, value in options.items():
        if value is not None and value is not False:
            words.append("--" + name.replace("_", "-"))
            words += [] if value is True else [str(value)]
    return words


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def engine(model_path: str | Path, **options: Any) -> Iterator[Any]:
    """A real `sglang.Engine` with `plain_options`; `options` add to them. Afterwards none of its processes are left.

    When one of them dies, whatever waits for the engine raises, and so does whatever asks it later. SGLang's own reaction
    is to kill the whole process it runs in, which in a test would take the other tests along.
    """
    import sglang

    if _current:
        raise RuntimeError("this process has an engine already, and SGLang keeps its configuration once per process")
    before = set(psutil.Process().children(recursive=True))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGQUIT, signal.SIGTERM)}
    running = None
    _current.append(model_path)
    try:
        running = sglang.Engine(
            model_path=str(model_path), **plain_options(**{"custom_sigquit_handler": _died_while_starting} | options)
        )
        _survive_deaths(running)
        yield running
    finally:
        _current.clear()
        _shut_down(running, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _died_while_starting(*_: Any) -> None:
    """Runs when a process of an engine that is being started reports an error; that process has logged the reason."""
    raise RuntimeError(DIED)


def _survive_deaths(running: Any) -> None:
    """Have SGLang's handler of signals fail what waits for a process that died, instead of killing this one."""
    manager = running.tokenizer_manager

    class Handler(manager.signal_handler_class):  # type: ignore[misc,name-defined]
        def running_phase_sigquit_handler(self, signum: Any = None, frame: Any = None) -> None:
            if not isinstance(running.loop, _EndedLoop):
                manager._subprocess_watchdog.stop()
                running.loop = _EndedLoop()
                manager.event_loop.stop()  # "Event loop stopped before Future completed" where somebody waits

    manager.signal_handler_class = Handler


class _EndedLoop:
    """The event loop of an engine that lost a process: whoever asks it for an answer would wait forever."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError(DIED)


def _shut_down(running: Any, before: set[psutil.Process]) -> None:
    """End an engine the way its user does, but only its own processes: SGLang ends every child of this process."""

    def end(*_: Any, **__: Any) -> None:
        ours = psutil.Process().children(recursive=True)
        end_processes({process for process in ours if process not in before and not _is_own_tracker(process)})

    try:
        if running is not None:
            with mock.patch("sglang.srt.entrypoints.engine.kill_process_tree", end):
                running.shutdown()
            atexit.unregister(running.shutdown)
            _close_loop(running)
    finally:
        end()


def _close_loop(running: Any) -> None:
    """Cancel what still waits for the ended processes, and close the event loop: nothing is left to warn about."""
    loop = running.tokenizer_manager.event_loop or running.loop
    loop.remove_signal_handler(signal.SIGQUIT)
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()
    asyncio.set_event_loop(asyncio.new_event_loop())  # the next engine of this process takes the current one


def end_processes(processes: Iterable[psutil.Process], timeout: float = 60) -> None:
    """Kill the processes and wait until they are gone."""
    processes = list(processes)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    deadline = time.monotonic() + timeout
    while left := [process for process in processes if is_alive(process)]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"these processes did not end: {left}")
        psutil.wait_procs(left, timeout=0.1)


def is_alive(process: psutil.Process) -> bool:
    """Whether the process still runs; one that ended and that its parent did not ask about yet does not."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _is_own_tracker(process: psutil.Process) -> bool:
    """Whether this is the one process that Python's `multiprocessing` keeps for us until we end."""
    with suppress(psutil.NoSuchProcess):
        return process.ppid() == os.getpid() and "multiprocessing.resource_tracker" in " ".join(process.cmdline())
    return False


@contextmanager
def server(model_path: str | Path, *more: str, log: Path | None = None, timeout: float = 300) -> Iterator[str]:
    """`python -m sglang.launch_server` with `plain_options` and the flags in `more`: yields its URL when it is healthy.

    Its log is kept in `log` (by default a file in the temporary folder) and printed when something goes wrong. It and
    every process it started are ended in any case.
    """
    port = free_port()
    log = log or Path(tempfile.mkdtemp(prefix="specplug-sglang-")) / "server.log"
    place = dict(model_path=model_path, host="127.0.0.1", port=port, skip_server_warmup=True)
    command = [sys.executable, "-m", "sglang.launch_server", *flags(plain_options(log_level="info", **place)), *more]
    with log.open("w") as output:
        process = psutil.Popen(
            command, env=os.environ | environment(), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_healthy(process, url, timeout)
            yield url
        except BaseException:
            print(f"--- {' '.join(command)}\n--- {log}\n{log.read_text(errors='replace')}", file=sys.stderr)
            raise
        finally:
            _end_server(process)


def _wait_until_healthy(process: psutil.Popen, url: str, timeout: float) -> None:
    """Poll the server's own health check; a server that ends by itself is an error at once."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the SGLang server ended with exit code {process.returncode} while it started")
        with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
            return
        time.sleep(0.2)
    raise TimeoutError(f"the SGLang server was not healthy after {timeout:.0f} s")


def _end_server(process: psutil.Popen) -> None:
    """Kill the server with all its processes, also those that outlived it: they are in the session that it leads."""
    session = {other for other in psutil.process_iter() if _session(other) == process.pid != other.pid}
    with suppress(psutil.NoSuchProcess):
        process.kill()
    process.wait(60)
    end_processes(session)


def _session(process: psutil.Process) -> int | None:
    """The session that a process is in; None when it is gone."""
    with suppress(ProcessLookupError, PermissionError):
        return os.getsid(process.pid)
    return None
