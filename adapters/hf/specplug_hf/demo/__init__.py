"""A real pair of models that ships with the package, and held-out prompts for it: no model hub is needed."""

from .pair import load_pair
from .prompts import prompt, prompt_text

__all__ = ["load_pair", "prompt", "prompt_text"]
