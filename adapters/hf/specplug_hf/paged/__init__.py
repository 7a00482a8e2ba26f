"""The cache in pages, as the kernels of GPUs read it: a store, a step over it, and which models it can serve."""

from specplug_hf.paged.step import PagedStep
from specplug_hf.paged.store import PagedStore

__all__ = ["PagedStep", "PagedStore"]
