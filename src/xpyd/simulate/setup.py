"""What is simulated: the pools, the limits, how KV moves, how fast everything is, and what fails."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from xpyd.economics.codecs import CodecTerm
from xpyd.economics.cost import ComputeModel, LinkModel, replication
from xpyd.economics.delays import NO_DELAYS, Delays
from xpyd.economics.engine import EngineModel, Scatter
from xpyd.economics.moving import UNKNOWN, MovingModel
from xpyd.model.shard import Shard
from xpyd.model.spec import ModelSpec
from xpyd.placement import PlacementConfig, Role
from xpyd.router import RouterConfig
from xpyd.scheduler.config import SchedulerConfig
from xpyd.simulate.config import SimulateConfig
from xpyd.simulate.costs import to_ps
from xpyd.simulate.hybrid import Hybrid
from xpyd.units import GIGA
from xpyd.workload.slo import SloConfig


@dataclass(frozen=True)
class Handover:
    """How KV moves, as ``worker.transfer_config`` names it."""

    mode: Literal["whole", "layerwise", "chunkwise"]
    direction: Literal["pull", "push"]
    first_token: Literal["prefill", "decode"]
    max_piece_bytes: int
    pieces_in_flight: int


@dataclass(frozen=True)
class Setup:
    """One arm."""

    spec: ModelSpec
    placement: PlacementConfig
    scheduler: SchedulerConfig
    handover: Handover
    router: RouterConfig
    slo: SloConfig
    compute: ComputeModel
    link: LinkModel
    options: SimulateConfig
    max_retries: int  # of one request that an outage hits; 0: it fails
    detect_s: float
    fast: bool = True
    moving: MovingModel = UNKNOWN
    delays: Delays = NO_DELAYS
    engines: Mapping[str, EngineModel] = field(default_factory=dict)  # by role; none: steps take what they do alone
    scatters: Mapping[str, Scatter] = field(default_factory=dict)  # likewise; draws follow from ``seed``
    seed: int = 0
    codec: CodecTerm | None = None
    hybrid: Hybrid | None = None  # every instance prefills and decodes, and each request stays or moves

    def pools(self) -> list[tuple[Role, int, int]]:
        """(role, instances, ranks of each), in the order of their ranks."""
        p = self.placement
        if p.num_colocated:
            return [(Role.COLOCATED, p.num_colocated, p.colocated_tp or 1)]
        roles = (Role.PREFILL, Role.DECODE) if self.hybrid is None else (Role.HYBRID, Role.HYBRID)
        return [(roles[0], p.num_prefill, p.prefill_tp), (roles[1], p.num_decode, p.decode_tp)]

    def compute_of(self, role: Role) -> ComputeModel:
        """The step model of a worker of this role; one of both kinds looks after as much as a decode worker."""
        found = self.engines.get(Role.DECODE if role is Role.HYBRID else role)
        return self.compute if found is None else found.of(self.compute)

    def num_kv_blocks(self, width: int) -> int:
        """Blocks of an instance whose ranks each give what a lone one would."""
        return self.scheduler.num_kv_blocks * self.spec.num_kv_heads // Shard(0, width).of(self.spec).num_kv_heads

    def slowness(self, number: int, width: int) -> float:
        """By what the step model's seconds are multiplied on instance ``number``."""
        speeds = self.options.speeds
        speed = speeds[number % len(speeds)] if speeds else 1.0
        return 1 / (speed * (width * self.options.tp_efficiency if width > 1 else 1.0))

    def kv_bytes(self, num_blocks: int) -> float:
        """What a hand-off of so many blocks puts on the wire, replicated heads counted."""
        wide = max(self.placement.prefill_tp, self.placement.decode_tp)
        share = self.codec.bytes_share if self.codec is not None else 1.0
        return num_blocks * self._layer_bytes * self.spec.num_layers * replication(self.spec, wide) * share

    def num_descriptors(self, num_blocks: int) -> int:
        """Pieces of it where a request's blocks are neighbours (``economics.scenario``)."""
        share = self.codec.bytes_share if self.codec is not None else 1
        return self.spec.num_layers * math.ceil(num_blocks * self._layer_bytes * share / self.handover.max_piece_bytes)

    def codec_ps(self, num_blocks: int) -> tuple[int, int]:
        """Picoseconds that encoding so many blocks takes at the source, and decoding at the destination."""
        if self.codec is None:
            return 0, 0
        gbytes = num_blocks * self._layer_bytes * self.spec.num_layers / GIGA
        p = self.placement
        encode_s = gbytes * self.codec.encode_s_per_gbyte / p.prefill_tp
        return to_ps(encode_s), to_ps(gbytes * self.codec.decode_s_per_gbyte / p.decode_tp)

    @property
    def _layer_bytes(self) -> int:
        return self.spec.block_bytes(self.scheduler.block_size)
