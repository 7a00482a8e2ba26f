"""A test fixture that stands in for `triton`, which takes a gigabyte to install and runs nothing on a CPU.

SGLang defines its GPU kernels where its modules are imported, so on a CPU the names have to exist and their decorators
have to leave the functions alone. Nothing can be computed with them: launching a kernel (`kernel[grid](...)`) is a
TypeError. Nothing of specplug uses this outside its tests.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

__version__ = "3.0.0"  # some of SGLang's and torch's modules compare it


def cdiv(x: int, y: int) -> int:
    """Divide and round up; called from host code."""
    return -(-x // y)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is not below `n`; called from host code."""
    return 1 << max(n - 1, 0).bit_length()


class _Named(Exception):
    """What every capitalised name of triton is: a class to derive from, to make, to ask `isinstance` about, to catch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args)


class _Inert(types.ModuleType):
    """What every other name is: a module, an empty container, and a decorator that gives the function back."""

    __path__: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        return _inert(self, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else _unchanged

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __or__(self, other: object) -> _Inert:
        return self

    __ror__ = __or__


def _unchanged(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _inert(parent: types.ModuleType, name: str) -> Any:
    """Make the name up, and remember it, so that it stays the same object."""
    if name.startswith("__"):
        raise AttributeError(name)
    value: Any
    if name[0].isupper():
        value = type(name, (_Named,), {"__module__": parent.__name__})
    else:
        value = importlib.import_module(f"{parent.__name__}.{name}")
    setattr(parent, name, value)
    return value


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module below `triton` that is not a file."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        inside = fullname.startswith(f"{__name__}.")
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if inside else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Inert(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing to run."""


def __getattr__(name: str) -> Any:
    return _inert(sys.modules[__name__], name)


sys.meta_path.append(_Finder())
