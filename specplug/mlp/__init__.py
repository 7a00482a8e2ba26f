"""IBM's token-and-embedding heads (Wertheimer et al., arXiv 2404.19124): what they are, and their published format."""

from specplug.mlp.checkpoint import check_hidden, placed, read_heads, save_heads
from specplug.mlp.config import HeadsConfig, read_config
from specplug.mlp.cpu import CPUHeads
from specplug.mlp.heads import Heads
from specplug.mlp.runner import HeadsRunner

__all__ = [
    "CPUHeads",
    "Heads",
    "HeadsConfig",
    "HeadsRunner",
    "check_hidden",
    "placed",
    "read_config",
    "read_heads",
    "save_heads",
]
