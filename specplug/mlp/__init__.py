"""IBM's token-and-embedding heads (Wertheimer et al., arXiv 2404.19124): what they are, and their published format."""

from specplug.mlp.checkpoint import placed, read_heads, save_heads
from specplug.mlp.config import HeadsConfig, read_config
from specplug.mlp.heads import Heads
from specplug.mlp.runner import HeadsRunner

__all__ = ["Heads", "HeadsConfig", "HeadsRunner", "placed", "read_config", "read_heads", "save_heads"]
