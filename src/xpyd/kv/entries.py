"""What a prefix cache is asked for, what it keeps and says: keys, entries, placed tables, moves between tiers. Pure."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, NamedTuple, Protocol

from xpyd.kv.eviction import Use

ROOT = b""  # the parent of a first block
KEY_BYTES = 16


Tier = Literal["pool", "host", "outbox", "shelf"]


class BlockMove(NamedTuple):
    """Bytes of a block, all layers, to be copied before the next step, in the order given.

    ``outbox``: where blocks wait that are on their way to the remote pool. ``shelf``: what a rank keeps of that pool.
    """

    source_tier: Tier
    source: int
    destination_tier: Tier
    destination: int


class Below(Protocol):
    """Where a tier's evicted blocks go."""

    name: Tier

    @property
    def num_free(self) -> int: ...

    def adopt(self, entry: Entry) -> int | None:
        """A slot for the block's bytes; None where it is not wanted."""
        ...


class Fetch(Protocol):
    """Whether blocks are fetched from the tier below rather than computed again."""

    def __call__(self, start: int, num_blocks: int) -> bool:
        """For ``num_blocks`` blocks of a sequence whose first ``start`` tokens have KV."""
        ...


def block_keys(tokens: list[int], block_size: int, keys: list[bytes]) -> list[bytes]:
    """The keys of all full blocks of ``tokens``; ``keys`` are those known so far, and are extended in place.

    key[i] = BLAKE2b(key[i - 1] + tokens of block i as int32), 16 bytes: the same on every rank.
    """
    for index in range(len(keys), len(tokens) // block_size):
        parent = keys[-1] if keys else ROOT
        content = array("i", tokens[index * block_size : (index + 1) * block_size]).tobytes()
        keys.append(blake2b(parent + content, digest_size=KEY_BYTES).digest())
    return keys


@dataclass(slots=True, eq=False)
class Entry:
    """A findable block: its tokens, what came before them, its use, and the key of its chain's first block."""

    key: bytes
    parent: bytes
    tokens: list[int]
    depth: int
    use: Use
    root: bytes
    num_children: int = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """The known tokens of a sequence, the keys of their full blocks, and whose request it is."""

    tokens: list[int]
    keys: list[bytes]
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Placed:
    """A block table. The first ``num_cached`` tokens have KV already, in ``num_shared`` blocks and maybe a copy.

    ``num_promoted`` of the shared blocks come from the host tier.
    """

    table: list[int]
    num_cached: int
    num_shared: int
    num_promoted: int = 0
