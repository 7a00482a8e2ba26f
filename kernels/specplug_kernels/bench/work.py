"""Bytes moved and operations done by each operation, as formulas: the least that any implementation has to do.

Bytes: what must be read is read once and what must be written is written once; scores and whatever else could stay in
registers or a cache costs none (the roofline model: Williams, Waterman and Patterson, CACM 52(4), 2009). Operations: one
for a multiplication and one for an addition, two matrix products a pair of query and visible entry (FlashAttention, arXiv
2205.14135, section 2: scores, then weights times values); the exponentials, one a pair and head against 2 (D + Dv), are
not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from specplug_kernels.bench.shapes import Shape

LAW = 4
"""Bytes of a probability: laws are float32."""
INDEX = 8
"""Bytes of an index of tokens, nodes or slots: int64."""
PAGE_INDEX = 4
"""Bytes of an index of pages: int32."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one call has to do."""

    bytes: int
    operations: int


def attention_work(shape: Shape, visible_in_tree: int, bias_entries: int) -> Work:
    """Attention of B trees over contiguous rows: K, V and the queries read, the output written; the bias of the tail read.

    ``visible_in_tree``: pairs (node, node it sees) of one tree. ``bias_entries``: numbers in the bias.
    """
    model, size = shape.model, shape.dtype.itemsize
    cache = 2 * shape.batch * model.kv_heads * shape.columns * model.head_dim
    nodes = 2 * shape.batch * model.heads * shape.nodes * model.head_dim  # queries, and as many outputs
    return Work((cache + nodes + bias_entries) * size, _attention_operations(shape, visible_in_tree))


def paged_attention_work(shape: Shape, visible_in_tree: int) -> Work:
    """The same over pages: no bias, but the table of pages, the bitmap of ancestors, and the log-sum-exp written."""
    model, size = shape.model, shape.dtype.itemsize
    cache = 2 * shape.batch * model.kv_heads * shape.columns * model.head_dim
    nodes = 2 * shape.batch * model.heads * shape.nodes * model.head_dim
    pages = shape.batch * -(-shape.columns // shape.page)
    described = (pages + shape.nodes * -(-shape.nodes // 32)) * PAGE_INDEX
    lse = shape.batch * model.heads * shape.nodes * 4
    return Work((cache + nodes) * size + described + lse, _attention_operations(shape, visible_in_tree))


def _attention_operations(shape: Shape, visible_in_tree: int) -> int:
    pairs = shape.batch * shape.model.heads * (shape.nodes * shape.context + visible_in_tree)
    return 4 * shape.model.head_dim * pairs


def linear_work(rows: int, inputs: int, outputs: int, size: int) -> Work:
    """``rows`` times a weight of ``outputs`` by ``inputs`` numbers of ``size`` bytes: the weight and the rows read, the outputs written."""
    return Work((inputs * outputs + rows * (inputs + outputs)) * size, 2 * rows * inputs * outputs)


def norm_work(rows: int, width: int, size: int) -> Work:
    """A norm of ``rows``: rows and weight read, as many rows written. Four operations a number: its square, their sum, two products."""
    return Work((2 * rows + 1) * width * size, 4 * rows * width)


def greedy_work(batch: int, nodes: int, path: int) -> Work:
    """Greedy verification: every node's token and the target's choice read, the path, its length and the bonus written.

    The tree itself (parents, depths, ancestors), which all rows share, is read once. Comparisons are no operations.
    """
    tree = nodes * 2 * INDEX + nodes * -(-nodes // 32) * 4
    return Work(batch * (2 * nodes + path + 2) * INDEX + tree, 0)


def sampled_work(batch: int, vocab: int, refused: int) -> Work:
    """Sampled verification of rows that refuse ``refused`` children, all of one node (0: the first child is taken all the way).

    The bonus is drawn from a law, which is read once. Each refusal changes the law of the target and the draft's; both
    must be read, but once: what is left of them could stay in a cache. Single entries (tokens, uniforms, p and q at a
    token) are left out. Operations a vocabulary entry: one for the sum of the draw; five a refusal (p - q, its sum, its
    division; the sum and division of q without the token).
    """
    laws = 2 if refused else 1
    return Work(batch * vocab * LAW * laws, batch * vocab * (1 + 5 * refused))


def move_work(lines: int, line_bytes: int, indices: int) -> Work:
    """``lines`` pieces of ``line_bytes`` read and written, and so many slot indices read."""
    return Work(2 * lines * line_bytes + indices * INDEX, 0)
