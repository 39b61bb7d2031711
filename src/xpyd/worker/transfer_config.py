"""The settings of a hand-off: when KV may leave, who decides, how it lies and travels; and what they rule out.

Apart from the hand-off itself, whose codecs need torch: a command line that composes and starts ranks does without.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Gt

from xpyd.kv.codec.config import COMPRESSED, CodecConfig
from xpyd.kv.layout import PoolOrder
from xpyd.kv.reshard import splits_heads
from xpyd.placement import PlacementConfig
from xpyd.scheduler.config import SchedulerConfig
from xpyd.transport.registry import Need

Mode = Literal["whole", "layerwise", "chunkwise"]
Direction = Literal["pull", "push"]


@dataclass(frozen=True)
class TransferConfig:
    """How KV moves, and how it lies in the pool. ``verify=once`` checks the first transfer of each pair in each block.

    ``mode``: when pieces may leave. ``direction``: who decides, see ``worker.handoff``. ``pool_order`` and
    ``block_order``: what is contiguous, see ``kv.layout.PoolOrder``. ``staging``: gather blocks into pieces of
    ``max_piece_bytes`` first, never, always, or (auto) where the costs measured at the start predict that it is faster.
    ``codec``: what they become in staging; the decode rank's pool holds what it can make of that.
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
        widths = f"placement.{placement.widths}"
        if self.direction != "pull":
            raise ValueError(f"transfer.direction={self.direction} with {widths}: set transfer.direction=pull")
        if self.staging != "off":
            raise ValueError(
                f"transfer.staging={self.staging} (codec.name={self.codec.name}) with {widths}: heads travel as they "
                "lie; set transfer.staging=off and codec=none"
            )
        split = splits_heads(placement.prefill, placement.decode, num_kv_heads)
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
