"""From two block tables to the spans that must move: neighbours are merged, long runs are cut into pieces. Pure ints.

Both ranks make the same plan from the same two tables, so a piece needs no description on the wire but its number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from xpyd.kv.layout import PoolLayout, Span


@dataclass(frozen=True)
class Plan:
    """The pieces of one hand-off, layer by layer: ``source[i]`` goes to ``destination[i]``, of equal length.

    ``layer_ends[l]`` is the number of pieces of layers 0 to l: as many may leave once layer l is computed.
    """

    source: list[Span]
    destination: list[Span]
    layer_ends: list[int]


def plan_layer(
    layout: PoolLayout, layer: int, source: Sequence[int], destination: Sequence[int], max_piece_bytes: int
) -> list[tuple[Span, Span]]:
    """The pieces of one layer: runs of blocks that are neighbours on both sides, cut at ``max_piece_bytes``."""
    assert len(source) == len(destination), "both ends hold the same number of blocks"
    pieces = []
    for first_source, first_destination, count in _runs(source, destination):
        start = layout.offset(layer, first_source)
        landing = layout.offset(layer, first_destination)
        total = count * layout.block_bytes
        for begin in range(0, total, max_piece_bytes):
            nbytes = min(max_piece_bytes, total - begin)
            pieces.append((Span(start + begin, nbytes), Span(landing + begin, nbytes)))
    return pieces


def plan_request(layout: PoolLayout, source: Sequence[int], destination: Sequence[int], max_piece_bytes: int) -> Plan:
    """The pieces of all layers, first layer first."""
    layers = [plan_layer(layout, layer, source, destination, max_piece_bytes) for layer in range(layout.num_layers)]
    pieces = [piece for layer in layers for piece in layer]
    return Plan(
        [source_span for source_span, _ in pieces],
        [destination_span for _, destination_span in pieces],
        list(accumulate(len(layer) for layer in layers)),
    )


def _runs(source: Sequence[int], destination: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(first source block, first destination block, count) of each stretch that is contiguous on both sides."""
    begin = 0
    for i in range(1, len(source) + 1):
        if i < len(source) and source[i] == source[i - 1] + 1 and destination[i] == destination[i - 1] + 1:
            continue
        yield source[begin], destination[begin], i - begin
        begin = i
