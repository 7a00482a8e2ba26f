"""Trees of the most probable continuations: what drafters propose that look a row's last tokens up in texts.

SuffixDecoding (arXiv 2411.04975, section 3.2) grows its tree so, greedily by the share of the occurrences that go a node's way;
REST (arXiv 2311.08252, section 3.2) keeps the nodes that most of the found continuations share. Nothing is drawn, so all nodes
are deterministic: the same tree serves greedy and sampled rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specplug.corpus.occurrences import Occurrences
from specplug.corpus.text import END
from specplug.drafters.padding import padded_trees
from specplug.errors import OptionError
from specplug.tree import TreeBatch, chain_trees, roots_only

HALVINGS = 20  # an occurrence that matches a token less weighs half as much, down to so many times


@dataclass(frozen=True, slots=True)
class Prefixes:
    """The distinct beginnings of what was found, g of them, level by level: each is a node that may be proposed."""

    rows: Tensor  # [g] int64, ascending within a level
    tokens: Tensor  # [g] int64, END where a text ended
    above: Tensor  # [g] int64: the beginning that is one token shorter, -1 = the root
    shares: Tensor  # [g] float64: weight of the row's occurrences that begin so, over all of them


def continuation_trees(
    roots: Tensor, found: Occurrences, size: int, min_probability: float, explain: bool = False
) -> TreeBatch:
    """The `size` most probable nodes of at least `min_probability` for every row: `roots` [B] int64, on their device.

    `found` looks no more than `size` tokens ahead.
    Nodes stand in order of falling probability. `explain`: give the probabilities too.
    """
    if not len(found):
        return roots_only(roots)
    if (chains := _unanimous(found, roots.shape[0])) is not None:
        return _as_chains(roots, *chains, explain)
    prefixes = distinct(found, roots.shape[0])
    kept, columns = _best(prefixes, size, min_probability)
    if not len(kept):
        return roots_only(roots)
    rows, above = prefixes.rows[kept], prefixes.above[kept]
    parents = torch.where(above < 0, 0, _places(prefixes, kept, columns)[above])
    shape = roots.shape[0], int(columns.max()) + 1
    packed = torch.zeros((3, *shape), dtype=torch.int64)  # tokens, parents, whether real
    packed[:, rows, columns] = torch.stack([prefixes.tokens[kept], parents, torch.ones_like(rows)])
    packed[1, :, 0], packed[2, :, 0] = -1, 1
    trees = _trees(roots, packed, bool((parents == columns - 1).all()), _most_children(rows, parents, shape))
    if not explain:
        return trees
    shares = torch.ones(shape, dtype=torch.float64).index_put((rows, columns), prefixes.shares[kept])
    own = shares / shares.gather(1, packed[1].clamp(min=0))
    own = own.where((packed[1] >= 0) & packed[2].bool(), torch.nan)
    return replace(trees, confidence=own.to(device=roots.device, dtype=torch.float32))


def _unanimous(found: Occurrences, num_rows: int) -> tuple[Tensor, Tensor] | None:
    """Where all occurrences of a row go on alike, as most do: the rows that have any [r] and what follows there [r, D]."""
    first = torch.ones(len(found), dtype=torch.bool)
    first[1:] = found.rows[1:] != found.rows[:-1]
    kinds = first.cumsum(0) - 1
    follows = found.follows[first]
    if int(kinds[-1]) >= num_rows or not torch.equal(found.follows, follows[kinds]):
        return None  # also where a row's occurrences do not stand together
    return found.rows[first], follows


def _as_chains(roots: Tensor, rows: Tensor, follows: Tensor, explain: bool) -> TreeBatch:
    """`follows` [r, D] up to its end for `rows` [r], nothing for the others. All of it is certain."""
    counts = torch.zeros(len(roots), dtype=torch.int64)
    counts[rows] = (follows != END).to(torch.uint8).cumprod(1).sum(1)
    longest = int(counts.max())
    if not longest:
        return roots_only(roots)
    packed = torch.zeros((len(roots), 1 + longest), dtype=torch.int64)
    packed[:, 0] = counts
    packed[rows, 1:] = follows[:, :longest].where(follows[:, :longest] != END, 0).long()
    there = packed.to(roots.device)
    trees = chain_trees(roots, there[:, 1:], None if bool((counts == longest).all()) else there[:, 0])
    if not explain:
        return trees
    step = torch.arange(1 + longest)
    certain = torch.ones(packed.shape).where((step > 0) & (step <= counts[:, None]), torch.nan)
    return replace(trees, confidence=certain.to(device=roots.device, dtype=torch.float32))


def check_probability(drafter: str, value: float) -> None:
    """Raise `OptionError` if a `min_probability` is none."""
    if not 0 <= value <= 1:
        raise OptionError(f"{drafter}: min_probability={value} must be from 0 (propose everything) to 1.")


def distinct(found: Occurrences, num_rows: int) -> Prefixes:
    """What the occurrences of each row begin with, and how many of them begin so."""
    table = torch.cat([found.rows[:, None], found.follows], 1)
    table, place = torch.unique(table, dim=0, return_inverse=True)  # and sorted
    count, depth = len(table), table.shape[1] - 1
    rows = table[:, 0]
    weights = torch.zeros(count, dtype=torch.float64).index_add(0, place, _weights(found, num_rows))
    differs = torch.ones((count, depth + 1), dtype=torch.bool)
    differs[1:] = table[1:] != table[:-1]
    fresh = (differs.int().cumsum(1) > 0)[:, 1:].T.flatten()  # level by level, as all that follows
    group = fresh.cumsum(0) - 1
    first = fresh.nonzero().flatten()
    weight = torch.zeros(len(first), dtype=torch.float64).index_add(0, group, weights.repeat(depth))
    total = torch.zeros(num_rows, dtype=torch.float64).index_add(0, rows, weights)
    owner = rows[first % count]
    above = group[first - count].where(first >= count, -1)
    return Prefixes(owner, table[:, 1:].T.flatten()[first], above, weight / total[owner])


def _weights(found: Occurrences, num_rows: int) -> Tensor:
    """[n] float64 powers of two, at most 1: how much an occurrence counts beside the row's longest.

    Sums of them are exact, so that no child outweighs its parent.
    """
    longest = torch.zeros(num_rows, dtype=torch.int64).scatter_reduce(0, found.rows, found.matched, "amax")
    short = longest[found.rows] - found.matched
    return torch.exp2(-short.clamp(max=HALVINGS).double())


def _best(prefixes: Prefixes, size: int, min_probability: float) -> tuple[Tensor, Tensor]:
    """The kept prefixes, by row and falling share, and their columns in the tree, from 1 on. A parent comes before its child."""
    kept = ((prefixes.tokens != END) & (prefixes.shares >= min_probability)).nonzero().flatten()
    kept = kept[(2 * prefixes.rows[kept] - prefixes.shares[kept]).argsort(stable=True)]
    rows = prefixes.rows[kept]
    columns = 1 + torch.arange(len(kept)) - torch.searchsorted(rows, rows)
    return kept[columns <= size], columns[columns <= size]


def _places(prefixes: Prefixes, kept: Tensor, columns: Tensor) -> Tensor:
    """The column of every prefix that is kept: [g]."""
    return torch.zeros_like(prefixes.rows).index_put((kept,), columns)


def _most_children(rows: Tensor, parents: Tensor, shape: tuple[int, int]) -> int:
    return int(torch.bincount(rows * shape[1] + parents).max())


def _trees(roots: Tensor, packed: Tensor, chains: bool, width: int) -> TreeBatch:
    """`packed` [3, B, N] on the CPU: tokens, parents, and whether a node is real; copied to the device at once."""
    full = bool(packed[2].all())
    tokens, parents, real = packed.to(roots.device)
    if chains:
        return chain_trees(roots, tokens[:, 1:], None if full else real.sum(1) - 1)
    tokens[:, 0] = roots
    return padded_trees(tokens, parents, None if full else real.bool(), width)
