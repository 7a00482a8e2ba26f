"""`squeezed`: the clusters of keys whose centroids suit the newest query (Squeezed Attention, arXiv 2411.09688)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specplug.errors import OptionError
from specplug.kv_policies.attention import newest_queries
from specplug.kv_policies.base import ChoosingPolicy, LayerContext, check_budget
from specplug.kv_policies.clusters import NONE, Clusters
from specplug.kv_policies.positions import keys_at


@dataclass(frozen=True, slots=True)
class Squeezed(ChoosingPolicy):
    """The last `window` positions, and by layer and KV head the clusters of keys that the newest query would look at.

    The (rotated) keys behind the prompt are clustered by k-means on their directions, `cluster` keys to a cluster on average;
    what is committed later joins the nearest cluster (clusters.py). A cluster's score is the paper's estimate of the
    attention that one of its keys gets, from its mean key C and its number of keys N: exp(q C_i) / sum_j N_j exp(q C_j), summed
    over the query heads of a group. The best clusters fill the budget; where the last one does not fit whole, its keys
    are taken by the same estimate with the key in place of C.

    A choice reads a mean for every `cluster` keys, and one cluster. Making the clusters costs as many products as attention of
    T / `cluster` queries to T keys, five times over, behind the prompt and each time the text has doubled.
    """

    budget: int = 512
    window: int = 64
    cluster: int = 16
    refresh: int = 8

    def __post_init__(self) -> None:
        check_budget("squeezed", self.budget, self.window, self.refresh)
        if self.cluster < 1:
            raise OptionError(f"squeezed: cluster={self.cluster} must be at least 1: keys to a cluster on average.")

    def open(self) -> _Catalogue:
        return _Catalogue(self)


class _Catalogue:
    """The clusters of every layer."""

    def __init__(self, policy: Squeezed) -> None:
        self._policy = policy
        self._layers: dict[int, Clusters] = {}

    def choose(self, context: LayerContext) -> Tensor:
        """As `Chooser.choose`; waits for the device.

        Of rows that a chooser has followed it gives the same whoever was in the batch beside them; a fresh chooser, which makes
        its clusters from the longer text, may give others.
        """
        clusters = self._layers.get(context.layer)
        if clusters is None:
            clusters = self._layers[context.layer] = Clusters.none(context.keys)
        clusters.update(context.keys, context.choices, self._policy.cluster)
        if not clusters.means.shape[2]:  # nothing to choose from in any row
            return clusters.labels.new_full((*clusters.labels.shape[:2], self._policy.anchors), -1)
        return _filled(clusters, context, self._policy.anchors)

    def keep_rows(self, rows: Sequence[int]) -> None:
        for clusters in self._layers.values():
            clusters.keep_rows(rows)


def _filled(clusters: Clusters, context: LayerContext, count: int) -> Tensor:
    """Positions of the best clusters, best first, until there are `count`: [B, Hkv, count], -1 = none.

    Members of a cluster stand together in `members`; slot s of the result falls into the cluster, of those in the order of
    their scores, whose sizes up to it first exceed s.
    """
    queries = newest_queries(context)  # [B, Hkv, G, D]
    logits = queries @ clusters.means.to(queries.dtype).mT  # [B, Hkv, G, K]
    total = (logits + clusters.sizes[:, :, None].log()).logsumexp(3, keepdim=True)
    scores = (logits - total).logsumexp(2).masked_fill(clusters.sizes == 0, -torch.inf)
    ranking = scores.argsort(dim=2, descending=True)  # [B, Hkv, K]
    sizes = clusters.sizes.gather(2, ranking)
    ends = sizes.cumsum(2)
    members, starts = _members(clusters, context.keys.shape[2])

    slot = torch.arange(count, device=ends.device).expand(*ends.shape[:2], -1).contiguous()
    found = torch.searchsorted(ends, slot, right=True)  # [B, Hkv, count]: rank of the cluster
    rank = found.clamp(max=ends.shape[2] - 1)
    offset = slot - (ends - sizes).gather(2, rank)
    place = starts.gather(2, ranking.gather(2, rank)) + offset
    positions = members.gather(2, place.clamp(max=members.shape[2] - 1))

    last = rank[:, :, -1:]
    of_last = _by_key(
        context.keys, queries, total, members, starts.gather(2, ranking.gather(2, last)), sizes.gather(2, last)
    )
    ordered = of_last.gather(2, offset.clamp(max=of_last.shape[2] - 1))
    return ordered.where(rank == last, positions).where(found == rank, -1)


def _members(clusters: Clusters, width: int) -> tuple[Tensor, Tensor]:
    """The `width` positions by cluster, the rest behind [B, Hkv, width], and where each cluster begins [B, Hkv, K]."""
    labels = clusters.labels[:, :, :width]
    ordered = labels.where(labels != NONE, clusters.sizes.shape[2]).argsort(dim=2, stable=True)
    return ordered, clusters.sizes.cumsum(2) - clusters.sizes


def _by_key(keys: Tensor, queries: Tensor, total: Tensor, members: Tensor, start: Tensor, size: Tensor) -> Tensor:
    """The `size` members of one cluster, which begins at `start` [B, Hkv, 1], best key first: [B, Hkv, most of any row]."""
    within = torch.arange(max(1, int(size.max())), device=keys.device)
    position = members.gather(2, (start + within).clamp(max=members.shape[2] - 1))
    read = keys_at(keys, position).to(queries.dtype)
    score = (queries @ read.mT - total).logsumexp(2).masked_fill(within >= size, -torch.inf)
    return position.gather(2, score.argsort(dim=2, descending=True))
