"""Which KV heads each destination rank takes from which source rank, where two instances differ in width. Pure.

Each destination rank takes just the heads that it holds, straight from a rank that has them. Where several source
ranks hold copies of a head, destination ranks are dealt out among them; where there are more copies than takers, a
taker takes an equal share of the blocks from each, so that no link idles while another carries it all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from xpyd.kv.layout import PoolLayout
from xpyd.kv.plan import Cells, Plan, merge
from xpyd.model.shard import Shard


@dataclass(frozen=True)
class Pull:
    """What one destination rank takes from one source rank; ranks count inside their instances.

    Heads count inside each rank's own pool. ``share`` of ``num_shares``: which part of the blocks, in table order.
    """

    source: int
    destination: int
    source_heads: range
    destination_heads: range
    share: int = 0
    num_shares: int = 1

    def blocks(self, num_blocks: int) -> range:
        """The places in the block table that are taken here."""
        return Shard(self.share, self.num_shares).part(num_blocks)


@dataclass(frozen=True)
class RankPool:
    """One rank's pool: its layout, and the bytes of one plane (K, V, or a latent) of one head in one block."""

    layout: PoolLayout
    head_bytes: int
    num_planes: int = 2

    @property
    def num_kv_heads(self) -> int:
        return self.layout.block_bytes // (self.num_planes * self.head_bytes)


def splits_heads(source_width: int, destination_width: int, num_kv_heads: int) -> bool:
    """Whether a block's heads go to, or come from, different ranks: then a range of heads must be contiguous."""
    widths = source_width, destination_width
    return len({len(Shard(0, width).kv_heads(num_kv_heads)) for width in widths}) > 1


def pulls(source_width: int, destination_width: int, num_kv_heads: int) -> list[Pull]:
    """Every pair of ranks that shares heads, by destination rank. Each pair occurs once."""
    return [
        pull
        for rank in range(destination_width)
        for pull in _pulls_of(rank, source_width, destination_width, num_kv_heads)
    ]


def _pulls_of(rank: int, source_width: int, destination_width: int, num_kv_heads: int) -> Iterator[Pull]:
    mine = Shard(rank, destination_width).kv_heads(num_kv_heads)
    num_takers = max(1, destination_width // num_kv_heads)  # ranks that hold the same heads as this one
    copies = max(1, source_width // num_kv_heads)
    taker = rank % num_takers
    first, end = taker * copies // num_takers, max((taker + 1) * copies // num_takers, taker * copies // num_takers + 1)
    for holder in range(0, source_width, copies):  # the first of the ranks that hold the same heads
        theirs = Shard(holder, source_width).kv_heads(num_kv_heads)
        common = range(max(mine.start, theirs.start), min(mine.stop, theirs.stop))
        if not common:
            continue
        for share, copy in enumerate(range(first, end)):
            yield Pull(
                holder + copy,
                rank,
                range(common.start - theirs.start, common.stop - theirs.start),
                range(common.start - mine.start, common.stop - mine.start),
                share,
                end - first,
            )


def plan_pull(
    pull: Pull,
    source: RankPool,
    destination: RankPool,
    tables: tuple[Sequence[int], Sequence[int]],
    max_piece_bytes: int,
    blocks_per_part: int | None = None,
) -> Plan:
    """The pieces of one pull, from ``tables`` (source, destination) of the whole request; parts as in plan_request.

    A part without blocks of this pull's share is empty. Heads that are not all of a rank's must lie ``heads_first``.
    """
    num_blocks = len(tables[0])
    assert num_blocks == len(tables[1]), "both ends hold the same number of blocks"
    mine = pull.blocks(num_blocks)
    parts = []
    for layers, places in _parts(source.layout.num_layers, num_blocks, blocks_per_part):
        taken = range(max(mine.start, places.start), min(mine.stop, places.stop))
        parts.append(
            Cells(
                _offsets(source, pull.source_heads, layers, tables[0], taken),
                _offsets(destination, pull.destination_heads, layers, tables[1], taken),
            )
        )
    return merge(parts, len(pull.source_heads) * source.head_bytes, max_piece_bytes)


def _parts(num_layers: int, num_blocks: int, blocks_per_part: int | None) -> Iterator[tuple[range, range]]:
    """(layers, places in the block table) of each part."""
    if blocks_per_part is None:
        for layer in range(num_layers):
            yield range(layer, layer + 1), range(num_blocks)
        return
    for begin in range(0, num_blocks, blocks_per_part):
        yield range(num_layers), range(begin, min(begin + blocks_per_part, num_blocks))


def _offsets(
    pool: RankPool, heads: range, layers: range, table: Sequence[int], places: range
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """First bytes of each plane of ``heads`` in every block of every layer, as they lie in memory."""
    blocks = np.asarray(table[places.start : places.stop], np.int64)
    grid = np.asarray(layers, np.int64)[:, None] * pool.layout.layer_stride + blocks * pool.layout.block_stride
    grid = grid.T if pool.layout.blocks_first else grid
    planes = np.arange(pool.num_planes, dtype=np.int64) * pool.num_kv_heads * pool.head_bytes
    return (grid[..., None] + planes + heads.start * pool.head_bytes).ravel()
