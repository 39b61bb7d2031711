"""Which layers and KV heads each destination rank takes from which source rank, where instances differ. Pure.

Each destination rank takes just what it holds, straight from a rank that has it. Where several source ranks hold
copies, destination ranks that want the same are dealt out among them; where there are more copies than takers, a taker
takes an equal share of the blocks from each, so that no link idles while another carries it all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from xpyd.kv.layout import PoolLayout
from xpyd.kv.plan import Cells, Plan, merge
from xpyd.model.shard import Shard, members
from xpyd.placement import Division


@dataclass(frozen=True)
class Holding:
    """The part of every block that one rank holds: layers and KV heads of the whole model."""

    layers: range
    heads: range

    def common(self, other: Holding) -> Holding:
        return Holding(_common(self.layers, other.layers), _common(self.heads, other.heads))

    @property
    def empty(self) -> bool:
        return not self.layers or not self.heads


@dataclass(frozen=True)
class Pull:
    """What one destination rank takes from one source rank; ranks count inside their instances.

    ``share`` of ``num_shares``: which part of the blocks, in table order.
    """

    source: int
    destination: int
    taken: Holding
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
    num_planes: int
    holding: Holding


def holdings(division: Division, num_layers: int, num_kv_heads: int) -> list[Holding]:
    """What each rank of an instance holds."""
    return [Holding(member.layers(num_layers), member.shard.kv_heads(num_kv_heads)) for member in members(division)]


def splits_heads(source: Division, destination: Division, num_kv_heads: int) -> bool:
    """Whether a block's heads go to, or come from, different ranks: then a range of heads must be contiguous."""
    return len({len(holding.heads) for end in (source, destination) for holding in holdings(end, 1, num_kv_heads)}) > 1


def pulls(source: Division, destination: Division, num_layers: int, num_kv_heads: int) -> list[Pull]:
    """Every pair of ranks that shares layers and heads, by destination rank. Each pair occurs once."""
    holders = _by_holding(holdings(source, num_layers, num_kv_heads))
    takers = _by_holding(holdings(destination, num_layers, num_kv_heads))
    found = [
        pull
        for wanted, ranks in takers.items()
        for had, copies in holders.items()
        for pull in _deal(had, copies, wanted, ranks)
    ]
    return sorted(found, key=lambda pull: pull.destination)


def _by_holding(ranks: list[Holding]) -> dict[Holding, list[int]]:
    found: dict[Holding, list[int]] = {}
    for rank, holding in enumerate(ranks):
        found.setdefault(holding, []).append(rank)
    return found


def _deal(had: Holding, copies: list[int], wanted: Holding, ranks: list[int]) -> Iterator[Pull]:
    """The source ranks ``copies``, which all hold ``had``, dealt out among the ``ranks`` that all want ``wanted``."""
    taken = wanted.common(had)
    if taken.empty:
        return
    for taker, rank in enumerate(ranks):
        first = taker * len(copies) // len(ranks)
        mine = copies[first : max((taker + 1) * len(copies) // len(ranks), first + 1)]
        for share, copy in enumerate(mine):
            yield Pull(copy, rank, taken, share, len(mine))


def _common(one: range, other: range) -> range:
    return range(max(one.start, other.start), min(one.stop, other.stop))


def plan_pull(
    pull: Pull,
    source: RankPool,
    destination: RankPool,
    num_layers: int,
    tables: tuple[Sequence[int], Sequence[int]],
    max_piece_bytes: int,
    blocks_per_part: int | None = None,
) -> Plan:
    """The pieces of one pull, from ``tables`` (source, destination) of the whole request; parts as in plan_request.

    Parts are those of the whole model's ``num_layers``; one without layers or blocks of this pull is empty. Heads that
    are not all of a rank's must lie ``heads_first``.
    """
    num_blocks = len(tables[0])
    assert num_blocks == len(tables[1]), "both ends hold the same number of blocks"
    mine = pull.blocks(num_blocks)
    parts = []
    for layers, places in _parts(num_layers, num_blocks, blocks_per_part):
        taken, blocks = Holding(_common(pull.taken.layers, layers), pull.taken.heads), _common(mine, places)
        parts.append(Cells(_offsets(source, taken, tables[0], blocks), _offsets(destination, taken, tables[1], blocks)))
    return merge(parts, len(pull.taken.heads) * source.head_bytes, max_piece_bytes)


def _parts(num_layers: int, num_blocks: int, blocks_per_part: int | None) -> Iterator[tuple[range, range]]:
    """(layers, places in the block table) of each part."""
    if blocks_per_part is None:
        for layer in range(num_layers):
            yield range(layer, layer + 1), range(num_blocks)
        return
    for begin in range(0, num_blocks, blocks_per_part):
        yield range(num_layers), range(begin, min(begin + blocks_per_part, num_blocks))


def _offsets(
    pool: RankPool, taken: Holding, table: Sequence[int], places: range
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """First bytes of each plane of the heads in every block of every layer, as they lie in memory."""
    held = pool.holding
    blocks = np.asarray(table[places.start : places.stop], np.int64)
    layers = np.asarray(taken.layers, np.int64) - held.layers.start
    grid = layers[:, None] * pool.layout.layer_stride + blocks * pool.layout.block_stride
    grid = grid.T if pool.layout.blocks_first else grid
    planes = np.arange(pool.num_planes, dtype=np.int64) * len(held.heads) * pool.head_bytes
    return (grid[..., None] + planes + (taken.heads.start - held.heads.start) * pool.head_bytes).ravel()
