"""Compiles a kernel's C once for a user, machine and compiler, and keeps the library in the user's cache.

The cache is ``$SPECPLUG_CACHE``, else ``$XDG_CACHE_HOME/specplug``, else ``~/.cache/specplug``. What is there is loaded into the
process, so nobody else may be able to write to it. A library's name says what it was built from, and its last bytes are a digest
of the rest: one that was cut off or changed is built again. It gets its name when it is whole; of two processes that
build at once the later one wins.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

SOURCES = Path(__file__).parent
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fno-math-errno", "-fPIC")
OPENMP = "-fopenmp"
SECONDS = 300
"""For a command of the compiler, which takes some seconds on a free processor; one that hangs must end."""
DIGEST = hashlib.sha256


class BuildError(RuntimeError):
    """Why there is no library, in one line."""


def build(name: str = "tree_attention") -> Path:
    """The library of the source ``name``, compiled now if it has not been.

    Raises:
        BuildError: no compiler, no cache that is only the user's, or a compilation that fails.
    """
    compiler, openmp = find_compiler(), torch_openmp()
    version = _output([*compiler, "--version"])
    if "clang" in version:
        openmp = None  # its code calls another runtime than torch's
    try:
        folder = cache_folder()
        path = folder / f"{name}-{_key(name, compiler, version, openmp)}.so"
        if not is_whole(path):
            _compile(name, compiler, openmp, path)
    except OSError as error:
        raise BuildError(f"the cache cannot be used: {error}") from error
    return path


def find_compiler() -> list[str]:
    """``$CC``, which may have options, else gcc, else cc: the command, found on the path.

    Raises:
        BuildError: there is none, or ``$CC`` is no command.
    """
    if os.name != "posix":
        raise BuildError(f"it is built on POSIX systems only, and this is {platform.system()}")
    try:
        named = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise BuildError(f"$CC cannot be read: {error}") from error
    for command in [named] if named else [["gcc"], ["cc"]]:
        found = shutil.which(command[0])
        if found is not None:
            return [found, *command[1:]]
    raise BuildError(f"$CC names {named[0]}, which is not found" if named else "no C compiler is found (gcc, cc)")


def torch_openmp() -> Path | None:
    """The GNU OpenMP library that came with torch and is in this process; ``None`` if torch uses another one.

    Linked to this very file, the kernel runs on torch's own threads, and ``torch.set_num_threads`` holds for it.
    """
    home = Path(torch.__file__).resolve().parent
    try:
        mapped = Path("/proc/self/maps").read_text(errors="replace")
    except OSError:
        return None
    for folder in (home / "lib", home.with_name("torch.libs")):
        for file in sorted(folder.glob("libgomp*.so*")):
            if f" {file.resolve()}\n" in mapped:
                return file.resolve()
    return None


def cache_folder() -> Path:
    """Where libraries are kept; made if it is not there, for the user alone.

    Raises:
        BuildError: it belongs to somebody else, or others may write to it.
        OSError: it cannot be made.
    """
    folder = _cache_path()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    reason = _not_ours(folder.stat())
    if reason is not None:
        raise BuildError(f"{folder} {reason}: what is loaded from there could be anything")
    return folder


def is_whole(path: Path) -> bool:
    """Whether ``path`` is a library as :func:`build` left it, and the user's own."""
    try:
        status, content = path.lstat(), path.read_bytes()
    except FileNotFoundError:
        return False
    size = DIGEST().digest_size
    ours = stat.S_ISREG(status.st_mode) and _not_ours(status) is None
    return ours and len(content) > size and DIGEST(content[:-size]).digest() == content[-size:]


def _cache_path() -> Path:
    for variable, below in (("SPECPLUG_CACHE", "."), ("XDG_CACHE_HOME", "specplug")):
        if os.environ.get(variable):
            return Path(os.environ[variable], below)
    try:
        return Path.home() / ".cache" / "specplug"
    except RuntimeError as error:
        raise BuildError(f"there is no home for a cache: {error}") from error


def _not_ours(status: os.stat_result) -> str | None:
    if status.st_uid != os.geteuid():
        return f"belongs to user {status.st_uid}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written to by others"
    return None


def _key(name: str, compiler: Sequence[str], version: str, openmp: Path | None) -> str:
    """What a library depends on, as a short hash: a home may be shared by machines, and a compiler may be replaced."""
    threads = "" if openmp is None else f"{openmp} {openmp.stat().st_size} {openmp.stat().st_mtime_ns}"
    sources = [file.read_text() for file in (SOURCES / f"{name}.c", *sorted(SOURCES.glob("*.h")))]
    parts = [*sources, *FLAGS, *compiler, version, platform.machine(), _processor(), threads]
    return DIGEST("\0".join(parts).encode()).hexdigest()[:24]


def _processor() -> str:
    """The first processor's description, with its instruction sets: what ``-march=native`` looks at."""
    wanted = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU implementer", "CPU part")
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return platform.processor()
    return "\n".join(line for line in first.splitlines() if line.partition(":")[0].strip() in wanted)


def _compile(name: str, compiler: Sequence[str], openmp: Path | None, path: Path) -> None:
    """Compile beside ``path``, seal with a digest, and rename. In two steps: ``-fopenmp`` would link the compiler's own runtime."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-", ignore_cleanup_errors=True) as work:
        program, library = Path(work, f"{name}.o"), Path(work, f"{name}.so")
        threads, runtime = ([], []) if openmp is None else ([OPENMP], [str(openmp)])
        _output([*compiler, *FLAGS, *threads, "-c", str(SOURCES / f"{name}.c"), "-o", str(program)])
        _output([*compiler, "-shared", str(program), *runtime, "-lm", "-o", str(library)])
        content = library.read_bytes()
        library.write_bytes(content + DIGEST(content).digest())
        library.chmod(0o700)
        library.replace(path)


def _output(command: Sequence[str]) -> str:
    """What a command of the compiler prints.

    Raises:
        BuildError: it fails, and how.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{command[0]} has not ended in {SECONDS} seconds") from error
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["without a word"]
        told = next((line for line in lines if "error" in line), lines[0])
        raise BuildError(f"{command[0]} fails: {told.strip()}")
    return done.stdout
