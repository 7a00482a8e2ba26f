"""Attention over a token tree and the KV-cache moves that go with it.

Public operations:

- :func:`tree_attention`: attention of a few queries over a long KV cache whose last columns are masked by a bias.
- :func:`write_kv`: put new keys or values into a preallocated buffer.
- :func:`commit_kv`: move accepted columns to their final place, every layer at once.
- :func:`available_kernels`, :func:`explain`: what ``kernel=`` accepts, and what ``"auto"`` chooses.
- :func:`tree_attention_reference`: the definition in plain words, the oracle of the tests.
"""

from specplug_kernels.dispatch import available_kernels, explain, tree_attention
from specplug_kernels.kv_move_torch import commit_kv, write_kv
from specplug_kernels.reference import tree_attention_reference

__all__ = ["available_kernels", "commit_kv", "explain", "tree_attention", "tree_attention_reference", "write_kv"]
