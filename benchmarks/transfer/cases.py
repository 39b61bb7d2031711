"""What is moved: KV patterns, requests at once, and where every piece lies at both ends. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xpyd.kv.layout import PoolLayout, Span
from xpyd.kv.plan import plan_request
from xpyd.units import MIB, format_bytes

LAYER_BYTES = 8 * MIB  # of one request: 2,048 tokens x 4 KiB, as of an 8B model with 8 KV heads in 16 bit
SMALLEST_BLOCK_BYTES = 64 * 1024
REQUESTS_AT_ONCE = 4
MAX_FLYING_BYTES = 4 * MIB  # small pieces: as many in flight as hide the time that each takes
MIN_FLYING, MAX_FLYING = 4, 64


@dataclass(frozen=True)
class Pattern:
    """Pieces of one size: in the order of memory, or all over the pool at both ends, so that no two can be merged."""

    piece_bytes: int
    scattered: bool = False

    @property
    def name(self) -> str:
        if self.piece_bytes == LAYER_BYTES:
            return f"{format_bytes(LAYER_BYTES)} layers"
        return f"{format_bytes(self.piece_bytes)} {'scattered' if self.scattered else 'blocks'}"

    @property
    def num_flying(self) -> int:
        """Pieces in flight per request."""
        return min(max(MAX_FLYING_BYTES // self.piece_bytes, MIN_FLYING), MAX_FLYING)

    def spans(self, payload_bytes: int, request: int) -> tuple[list[Span], list[Span]]:
        """Source and destination spans of a request that has ``payload_bytes`` of the pool to itself at both ends."""
        layout = PoolLayout(payload_bytes // LAYER_BYTES, LAYER_BYTES // self.piece_bytes, self.piece_bytes)
        source = destination = list(range(layout.num_blocks))
        if self.scattered:
            generator = np.random.default_rng(request)
            source, destination = (generator.permutation(layout.num_blocks).tolist() for _ in range(2))
        plan = plan_request(layout, source, destination, self.piece_bytes)
        begin = request * payload_bytes
        return [_moved(span, begin) for span in plan.source], [_moved(span, begin) for span in plan.destination]


LAYERS = Pattern(LAYER_BYTES)
SCATTERED = Pattern(SMALLEST_BLOCK_BYTES, scattered=True)
PATTERNS = (LAYERS, Pattern(MIB), Pattern(256 * 1024), Pattern(SMALLEST_BLOCK_BYTES), SCATTERED)


@dataclass(frozen=True)
class Case:
    """One thing to measure. ``payload_bytes`` are of one request between one pair of ranks."""

    pattern: Pattern
    num_requests: int
    payload_bytes: int

    @property
    def name(self) -> str:
        return f"{self.pattern.name} x{self.num_requests}"

    @property
    def num_pieces(self) -> int:
        """Of all requests of one pair."""
        return self.num_requests * (self.payload_bytes // self.pattern.piece_bytes)

    @property
    def total_bytes(self) -> int:
        """Of all requests of one pair."""
        return self.num_requests * self.payload_bytes


@dataclass(frozen=True)
class Stream:
    """One request between this rank and ``peer``: where its pieces lie at both ends."""

    peer: int
    request: int
    source: list[Span]
    destination: list[Span]


@dataclass(frozen=True)
class Work:
    """A case between this rank and its peers. What comes from each source lands in an area of its own."""

    case: Case
    peers: tuple[int, ...]
    streams: tuple[Stream, ...]

    @classmethod
    def plan(cls, case: Case, peers: Sequence[int], is_source: bool) -> Work:
        streams = []
        for index, peer in enumerate(peers):
            area = 0 if is_source else index * case.total_bytes
            for request in range(case.num_requests):
                source, landing = case.pattern.spans(case.payload_bytes, request)
                streams.append(Stream(peer, request, source, [_moved(span, area) for span in landing]))
        return cls(case, tuple(peers), tuple(streams))


def cases(layers_bytes: int, num_sides: int, quick: bool) -> list[Case]:
    """What to measure with ``num_sides`` sources and as many destinations.

    ``layers_bytes`` is one request of whole layers; blocks take a quarter, and so does each of four requests at once.
    """
    part_bytes = max(layers_bytes // REQUESTS_AT_ONCE, LAYER_BYTES)
    if num_sides > 1:
        return [Case(LAYERS, 1, part_bytes), Case(SCATTERED, 1, part_bytes)]
    patterns: Sequence[Pattern] = (LAYERS, SCATTERED) if quick else PATTERNS
    single = [Case(pattern, 1, layers_bytes if pattern is LAYERS else part_bytes) for pattern in patterns]
    return single if quick else [*single, *(Case(p, REQUESTS_AT_ONCE, part_bytes) for p in (LAYERS, SCATTERED))]


def _moved(span: Span, by: int) -> Span:
    return Span(span.offset + by, span.nbytes)
