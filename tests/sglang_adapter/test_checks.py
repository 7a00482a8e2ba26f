"""What the SGLang adapter refuses because it would not be lossless."""

from __future__ import annotations

import pytest
import torch

from specplug import KVPolicy, KVSelection, UnsupportedError
from specplug.kv_policies import Full, Streaming
from specplug_sglang.checks import check_layout, check_pool, check_window


class ByHead(KVPolicy):
    """Another position for each of two heads."""

    budget = 1

    def select(self, lengths):
        return KVSelection(torch.tensor([0, 1]).view(1, 1, 2, 1).expand(len(lengths), -1, -1, -1), 0)


def test_a_policy_that_selects_by_head_is_refused():
    for policy in (Full(), Streaming(sink=2, window=6)):
        check_layout(policy)
    with pytest.raises(UnsupportedError, match="ByHead selects by layer or head.*'streaming' or 'full'"):
        check_layout(ByHead())


@pytest.mark.parametrize("kind", ["SWAKVPool", "MLATokenToKVPool", "HybridLinearKVPool"])
def test_only_plain_caches_are_served(kind):
    check_pool(type("MHATokenToKVPool", (), {})())
    with pytest.raises(UnsupportedError, match=f"KV cache is a {kind}.*--disable-hybrid-swa-memory"):
        check_pool(type(kind, (), {})())


def test_sliding_windows_are_served_on_a_cpu():
    check_window(None, "cuda")
    check_window(4096, "cpu")
    with pytest.raises(UnsupportedError, match="sliding window .of 4096. on cuda"):
        check_window(4096, "cuda")
