"""The hand-off's settings and its two ends: what a prefill rank has to give, and what a decode rank is taking.

Pull: the source offers its block table; the destination takes an offer only when it has a seat in its batch, blocks
for the prompt and room for what runs to grow. Until then the KV waits in the source's pool. Push: the source asks for
blocks when the request arrives, and gets them as soon as any are free; it sends when it is ready, and what has landed
waits in the destination's pool for a seat. So a burst queues up in the prefill pool under pull, in the decode pool
under push (``StepRow.num_reserved_kv_blocks``). In both, source blocks are not reused before the release.

How pieces travel is the transport's matter: by messages the destination posts receives and the source sends; where a
transport is one-sided, the destination reads (pull), told which parts are final, or the source writes (push).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

from annotated_types import Gt

from xpyd.kv.codec.config import COMPRESSED, CodecConfig
from xpyd.kv.layout import PoolOrder
from xpyd.kv.plan import Plan
from xpyd.kv.reshard import splits_heads
from xpyd.kv.staging import StagedPlan
from xpyd.placement import PlacementConfig
from xpyd.scheduler.base import SchedulerConfig, Sequence
from xpyd.transport.flow import ReadFlow
from xpyd.transport.registry import Need
from xpyd.worker.messages import Accept, FirstToken, Offer, Release, Submit
from xpyd.worker.staged import StagedReceive

AnyPlan = Plan | StagedPlan


class HasParts(Protocol):
    """A plan, as far as releasing its pieces goes."""

    @property
    def part_ends(self) -> list[int]: ...


class SendSide(Protocol):
    """The source's end of a hand-off, whichever way its pieces travel."""

    @property
    def begin_ns(self) -> int | None: ...

    @property
    def done(self) -> bool: ...

    def release(self, count: int) -> None: ...

    def advance(self) -> bool: ...


class ReceiveSide(Protocol):
    """The destination's end."""

    @property
    def done(self) -> bool: ...

    def advance(self) -> bool: ...


Mode = Literal["whole", "layerwise", "chunkwise"]
Direction = Literal["pull", "push"]


@dataclass(frozen=True)
class TransferConfig:
    """How KV moves, and how it lies in the pool. ``verify=once`` checks the first transfer of each pair in each block.

    ``mode``: when pieces may leave. ``direction``: who decides, see the module. ``pool_order`` and ``block_order``:
    what is contiguous, see ``kv.layout.PoolOrder``. ``staging``: gather blocks into pieces of ``max_piece_bytes``
    first, never, always, or (auto) where the costs measured at the start predict that it is faster. ``codec``: what
    they become in staging; the decode rank's pool holds what it can make of that.
    """

    mode: Mode = "whole"
    direction: Direction = "pull"
    pieces_in_flight: Annotated[int, Gt(0)] = 8
    max_piece_bytes: Annotated[int, Gt(0)] = 1 << 20
    pool_order: Literal["layers_first", "blocks_first"] = "layers_first"
    block_order: Literal["tokens_first", "heads_first"] = "tokens_first"
    staging: Literal["off", "on", "auto"] = "off"
    staging_bytes: Annotated[int, Gt(0)] = 64 << 20
    codec: CodecConfig = field(default_factory=CodecConfig)
    verify: Literal["off", "once", "always"] = "once"
    first_token: Literal["prefill", "decode"] = "prefill"
    timeout_s: Annotated[float, Gt(0)] = 30.0

    def __post_init__(self) -> None:
        self._check_codec()
        if self.staging == "off":
            return
        if self.direction == "push":
            raise ValueError(
                f"staging={self.staging} with direction=push: the decode rank lends its staging memory when it takes "
                "an offer, which push does not wait for; set transfer.staging=off or transfer.direction=pull"
            )
        window_bytes = self.pieces_in_flight * self.max_piece_bytes
        if self.staging_bytes < window_bytes:
            raise ValueError(
                f"staging_bytes={self.staging_bytes} is less than one transfer needs, pieces_in_flight="
                f"{self.pieces_in_flight} x max_piece_bytes={self.max_piece_bytes} = {window_bytes}; raise "
                "transfer.staging_bytes or lower one of the two"
            )

    def _check_codec(self) -> None:
        name = self.codec.name
        if name in COMPRESSED:
            raise ValueError(
                f"codec.name={name}: its sizes vary with the content, and a hand-off has its pieces planned before; "
                "choose none, fp8 or int8 here, and measure it with experiments.codecs"
            )
        if name != "none" and self.staging != "on":
            raise ValueError(
                f"codec.name={name} with staging={self.staging}: encoded blocks travel through staging memory; set "
                f"transfer.staging=on too, or choose codec={name}, which sets both"
            )

    @property
    def order(self) -> PoolOrder:
        return PoolOrder(self.pool_order == "blocks_first", self.block_order == "heads_first")

    @property
    def registered_staging_bytes(self) -> int:
        """Staging memory to register behind the pool."""
        return 0 if self.staging == "off" else self.staging_bytes

    def blocks_per_part(self, scheduler: SchedulerConfig) -> int | None:
        """KV blocks that become final together; None: parts are layers (see ``kv.plan.plan_request``)."""
        if self.mode == "layerwise":
            return None
        chunk_blocks = max(1, scheduler.max_num_batched_tokens // scheduler.block_size)
        return chunk_blocks if self.mode == "chunkwise" else scheduler.num_kv_blocks

    def needs(self) -> list[Need]:
        """What the settings ask of the transport (see ``TransportConfig.check``)."""
        way, other = ("read", "push") if self.direction == "pull" else ("write", "pull")
        able = ("two_sided", f"one_sided_{way}")
        asked = [Need(f"transfer.direction={self.direction}", able, f"transfer.direction={other}")]
        if self.staging != "off":  # a one-sided source takes no part, so it cannot gather
            asked.append(Need(f"transfer.staging={self.staging}", ("two_sided",), "transfer.staging=off"))
        return asked

    def check_widths(self, placement: PlacementConfig, num_kv_heads: int) -> None:
        """Raises ValueError for what a hand-off between instances of several ranks cannot do."""
        if not placement.several_ranks:
            return
        widths = f"placement.prefill_tp={placement.prefill_tp}, decode_tp={placement.decode_tp}"
        if self.direction != "pull":
            raise ValueError(f"transfer.direction={self.direction} with {widths}: set transfer.direction=pull")
        if self.staging != "off":
            raise ValueError(
                f"transfer.staging={self.staging} (codec.name={self.codec.name}) with {widths}: heads travel as they "
                "lie; set transfer.staging=off and codec=none"
            )
        split = splits_heads(placement.prefill_tp, placement.decode_tp, num_kv_heads)
        if split and self.block_order != "heads_first":
            raise ValueError(
                f"transfer.block_order={self.block_order} with {widths}: their ranks hold different numbers of KV "
                "heads, and a rank takes just its own, which must lie together; set transfer.block_order=heads_first"
            )

    def check(self, scheduler: SchedulerConfig, block_bytes: int) -> None:
        """Raises ValueError for what this scheduler or model (bytes of a KV block in one layer) cannot do."""
        if self.mode == "chunkwise" and scheduler.policy != "chunked":
            raise ValueError(
                f"transfer.mode=chunkwise with scheduler.policy={scheduler.policy}: prompts run whole there, so no "
                "chunk leaves before the last; choose scheduler=chunked, or transfer.mode=whole or layerwise"
            )
        if self.staging != "off" and block_bytes > self.max_piece_bytes:
            raise ValueError(
                f"transfer.staging={self.staging}: a block of {block_bytes} bytes is larger than "
                f"transfer.max_piece_bytes={self.max_piece_bytes}, so nothing can be gathered; raise the latter, lower "
                "scheduler.block_size, or set transfer.staging=off"
            )


@dataclass(slots=True)
class Undo:
    """A hand-off that was cancelled: what it was doing, and how its blocks become quiet."""

    attempt: int
    stage: str
    lost: bool  # the peer is lost: no answer comes, the transport alone tells when the blocks are quiet
    since_ns: int  # this rank's own clock


@dataclass(slots=True)
class Outgoing:
    """A request on its prefill rank, from its offer to its release."""

    submit: Submit
    transfer_seq: int
    sequence: Sequence | None = None  # once it runs: until then it has no blocks
    accept: Accept | None = None
    parts_ready: int = 0
    computed_ns: int = 0  # this rank's own clock, for the timeout only; 0: the prompt is not computed yet
    started_ns: int = 0  # likewise
    plan: HasParts | None = None
    flow: SendSide | None = None
    ended: bool = False  # all has left, and (one-sided push) the decode rank was told so
    release: Release | None = None
    broken: bool = False  # the transport failed: the client decides what becomes of it
    undo: Undo | None = None
    dropped: bool = False  # the peer has said that nothing moves any more: it was cancelled

    def parts_done(self, num_parts: int) -> None:
        """The KV of the first ``num_parts`` parts is final: those pieces may leave."""
        self.parts_ready = max(self.parts_ready, num_parts)
        if self.flow is not None and self.plan is not None and self.parts_ready:
            self.flow.release(self.plan.part_ends[self.parts_ready - 1])


@dataclass(slots=True)
class Incoming:
    """A request on its decode rank, from its offer to its admission."""

    source: int
    offer: Offer
    source_table: list[int]  # empty until a push is announced
    table: list[int] = field(default_factory=list)
    reserved_ns: int = 0  # the client's clock
    since_ns: int = 0  # this rank's own clock, for the timeout only: accepted, or (then) the prompt is computed
    parts_ready: int = 0
    plan: AnyPlan | None = None
    flow: ReceiveSide | None = None
    num_inflight: int = 0
    landed_ns: int | None = None
    first: FirstToken | None = None
    released: bool = False  # the source has its blocks back
    broken: bool = False  # as in Outgoing
    undo: Undo | None = None
    dropped: bool = False

    @property
    def staged(self) -> bool:
        return isinstance(self.flow, StagedReceive)

    def parts_done(self, num_parts: int) -> None:
        """The first ``num_parts`` parts are final at the source; a read may fetch them."""
        self.parts_ready = max(self.parts_ready, num_parts)
        if isinstance(self.flow, ReadFlow) and isinstance(self.plan, Plan) and self.parts_ready:
            self.flow.release(self.plan.part_ends[self.parts_ready - 1])
