"""A test fixture that stands in for `torchvision`, whose usual wheel needs CUDA libraries.

SGLang and, once a package of this name is found, transformers import it for their image models, which these tests do
not use. The names can be imported; whatever would handle an image raises. Nothing of specplug uses this outside its
tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

__version__ = "0.0"


def absent(module: str) -> Callable[[str], Callable[..., NoReturn]]:
    """The `__getattr__` of a module: every name is a function that says that it is not there."""

    def function(name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> NoReturn:
            raise NotImplementedError(f"{module}.{name} has no stand-in; install torchvision to handle images")

        return missing

    return function
