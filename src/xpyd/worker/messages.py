"""The control messages between ranks: small typed structs, encoded with msgpack (nothing is unpickled).

Prompts travel as little-endian int32 bytes. Every stamp in a message is already on the client's clock.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import starmap

import msgspec
import numpy as np
from msgspec.structs import astuple

from xpyd.kv.entries import BlockMove
from xpyd.model.segment import Segment


class Message(msgspec.Struct, tag=True, frozen=True):
    """Base of all control messages; the tag in the encoding is the class name."""


class Submit(Message, frozen=True):
    """Client to a prefill or colocated worker: serve this request; ``peer`` is its decode rank (-1: none)."""

    request_id: int
    prompt: bytes
    output_len: int
    seed: int
    peer: int
    attempt: int = 0  # counts the times that the request was routed
    priority: int = 0  # for eviction


class Emitted(msgspec.Struct, frozen=True):
    """One output token of one request."""

    request_id: int
    index: int
    token: int
    margin: float


_STAMP, _EMITTED = struct.Struct("=q"), struct.Struct("=iiif")


class Tokens(Message, frozen=True):
    """Worker to client: all tokens of one step, in one message: when they were emitted, and each of them (``Emitted``).

    As one run of bytes, so that steps which follow on one another write into the message of the one before, in C
    (``struct emitted`` in native/kernels_step.h): nothing per token is made.
    """

    data: bytes

    @classmethod
    def of(cls, emitted_ns: int, tokens: Iterable[Emitted]) -> Tokens:
        return cls(b"".join([_STAMP.pack(emitted_ns), *[_EMITTED.pack(*astuple(each)) for each in tokens]]))

    @staticmethod
    def num_bytes(num_tokens: int) -> int:
        """How long ``data`` is."""
        return _STAMP.size + num_tokens * _EMITTED.size

    @property
    def emitted_ns(self) -> int:
        return int(_STAMP.unpack_from(self.data)[0])

    @property
    def tokens(self) -> Iterator[Emitted]:
        return starmap(Emitted, _EMITTED.iter_unpack(memoryview(self.data)[_STAMP.size :]))


class Failed(Message, frozen=True):
    """Worker to client: this request will not finish."""

    request_id: int
    reason: str


class Offer(Message, frozen=True):
    """Prefill to decode: the KV of a request is, or will be, in these source blocks; may it come?

    Pull: sent when the first part is about to be computed (whole: when all is), and ``FirstToken`` follows. Push: sent
    when the request arrives, to have ``num_blocks`` blocks set aside; ``table`` is empty, as no block is taken yet.
    """

    request_id: int
    prompt: bytes
    output_len: int
    seed: int
    transfer_seq: int
    num_blocks: int
    table: list[int]
    attempt: int = 0
    priority: int = 0


class Accept(Message, frozen=True):
    """Decode to prefill: these destination blocks are yours. Pull: receives are posted, send; or they are being read.

    ``staged``: through staging memory at both ends. The first ``num_here`` blocks are there already and do not move.
    """

    request_id: int
    table: list[int]
    staged: bool
    num_here: int = 0


class Announce(Message, frozen=True):
    """Prefill to decode, push by messages: the source blocks, so that receives can be posted. No answer is awaited."""

    request_id: int
    table: list[int]


class Ready(Message, frozen=True):
    """Prefill to decode, one-sided pull: the first ``num_parts`` parts are final and may be read."""

    request_id: int
    num_parts: int


class FirstToken(Message, frozen=True):
    """Prefill to decode: the prompt is computed; token 0, and (when asked for) the checksums of its KV blocks."""

    request_id: int
    token: int
    margin: float
    prefill_end_ns: int
    checksums: bytes


class Landed(Message, frozen=True):
    """Prefill to decode, one-sided push: every byte was written into the destination blocks."""

    request_id: int
    end_ns: int


class Release(Message, frozen=True):
    """Decode to prefill: the KV has landed and was checked; the source blocks may be used again.

    ``begin_ns`` and ``num_pieces`` are 0 where the source posted the pieces itself, and knows.
    """

    request_id: int
    reserved_ns: int
    begin_ns: int
    end_ns: int
    num_pieces: int
    num_inflight: int
    staged: bool
    verified: bool


class Final(msgspec.Struct, frozen=True, array_like=True):
    """What a step makes final of a request that moves: its first ``num_parts`` parts; ``by_layer``: one by one."""

    request_id: int
    num_parts: int
    by_layer: bool


class Step(Message, frozen=True):
    """Leader to follower: run this step."""

    segments: list[Segment]
    finals: list[Final]
    moves: list[BlockMove] = []  # to be made first


class Move(Message, frozen=True):
    """Leader to follower: send your heads of a request to, or receive them from, the instance that ``peer`` leads."""

    request_id: int
    peer: int
    sends: bool
    transfer_seq: int
    source_table: list[int]
    destination_table: list[int]


class Moved(Message, frozen=True):
    """Follower to leader: all of my heads have left (begun at ``begin_ns``, 0: none were due) or landed."""

    request_id: int
    begin_ns: int
    end_ns: int
    num_pieces: int


class Sums(Message, frozen=True):
    """Source rank to destination rank, between instances of several ranks: CRC-32 of every piece between the two."""

    request_id: int
    checksums: bytes


class Beat(Message, frozen=True):
    """Between the client and every worker rank, both ways: I am here."""


class PeerLost(Message, frozen=True):
    """Worker to client: the transport cannot reach ``peer``."""

    peer: int
    reason: str


class Gone(Message, frozen=True):
    """Client to worker: these ranks are lost; take nothing from them, send nothing to them."""

    ranks: list[int]


class Cancel(Message, frozen=True):
    """Client to worker: drop this request, up to this attempt; ``Cancelled`` says when its memory is quiet."""

    request_id: int
    attempt: int


class Cancelled(Message, frozen=True):
    """Worker to client: nothing of the request is left here; ``stage`` says where it was."""

    request_id: int
    attempt: int
    stage: str


class Dropped(Message, frozen=True):
    """Between the two ends of a hand-off that was cancelled: nothing moves into or out of my blocks any more."""

    request_id: int
    attempt: int


class Seek(Message, frozen=True):
    """Worker to a chain's home in the remote pool: what do you have of these blocks, from the first on?"""

    request_id: int
    keys: list[bytes]
    priority: int


class Found(Message, frozen=True):
    """The answer: so many of them, in these slots, which are held until ``Bring``."""

    request_id: int
    slots: list[int]


class Bring(Message, frozen=True):
    """Receives are posted: send the slots from the ``first`` on into these blocks. An empty table: never mind."""

    request_id: int
    first: int
    table: list[int]
    transfer_seq: int


class PutEntry(msgspec.Struct, frozen=True, array_like=True):
    """A block that was evicted, see ``kv.prefix.Entry``."""

    key: bytes
    parent: bytes
    root: bytes
    depth: int
    priority: int


class Put(Message, frozen=True):
    """Worker to a home: blocks for you wait in these outbox slots. ``number`` is their transfer's."""

    number: int
    entries: list[PutEntry]
    slots: list[int]


class Take(Message, frozen=True):
    """The answer: receives are posted into these slots; -1: not wanted."""

    number: int
    slots: list[int]


class Closed(Message, frozen=True):
    """Between workers at a block's end: this rank asks for nothing more, and puts nothing."""


class EndBlock(Message, frozen=True):
    """Client to worker: no request of this block is left. ``abort`` drops what is still there."""

    abort: bool


BetweenInstances = (
    Submit | Tokens | Failed | Offer | Accept | Announce | Ready | FirstToken | Landed | Release | EndBlock
)
InsideInstance = Step | Move | Moved | Sums
OfFaults = Beat | PeerLost | Gone | Cancel | Cancelled | Dropped
OfPool = Seek | Found | Bring | Put | Take | Closed
AnyMessage = BetweenInstances | InsideInstance | OfFaults | OfPool

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: Message) -> bytes:
    return _ENCODER.encode(message)


def decode(data: bytes | bytearray) -> AnyMessage:
    """Raises msgspec.ValidationError for bytes that are no message."""
    message: AnyMessage = _DECODER.decode(data)
    return message


def pack_prompt(tokens: np.typing.NDArray[np.int32]) -> bytes:
    return tokens.astype("<i4").tobytes()


def unpack_prompt(data: bytes) -> list[int]:
    tokens: list[int] = np.frombuffer(data, dtype="<i4").tolist()
    return tokens
