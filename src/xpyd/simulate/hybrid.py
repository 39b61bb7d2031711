"""Hybrid routing in simulated time: every instance prefills and decodes, and ``xpyd.hybrid`` says which requests move.

The policy is the one of a real run, told of the same things by the cluster that the client tells it of there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING

from xpyd.economics.cost import ComputeFit, LinkFit
from xpyd.economics.nnls import Score
from xpyd.economics.scenario import Calibration, Scenario, classes_of
from xpyd.hybrid import HybridConfig, HybridPolicy, Reckoning
from xpyd.request import Request
from xpyd.simulate.account import Flight
from xpyd.simulate.costs import PS_PER_S
from xpyd.units import NS_PER_S

if TYPE_CHECKING:
    from xpyd.simulate.setup import Setup

EXACT = Score(0, 0.0, 0.0, 1.0)  # the simulator's costs are what the policy reckons with


@dataclass(frozen=True)
class Hybrid:
    """The policy, and the load that it may know of beforehand."""

    config: HybridConfig
    scenario: Scenario


def hybrid_for(setup: Setup, config: HybridConfig, requests: Sequence[Request]) -> Hybrid:
    """What a run knows before it plays ``requests``: their planned lengths and rate, and the limits of the ranks."""
    scheduler, placement = setup.scheduler, setup.placement
    lasted_s = max(1, requests[-1].arrival_offset_ns) / NS_PER_S
    scenario = Scenario(
        spec=setup.spec,
        classes=classes_of(requests),
        num_requests=len(requests),
        num_prefill=placement.num_prefill,
        num_decode=placement.num_decode,
        policy=scheduler.policy,
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        block_size=scheduler.block_size,
        num_kv_blocks=scheduler.num_kv_blocks,
        mode=setup.handover.mode,
        max_piece_bytes=setup.handover.max_piece_bytes,
        rate_rps=len(requests) / lasted_s,
    )
    return Hybrid(config, scenario)


class HybridRouting:
    """Where each request goes. Instances are numbered as ``Cluster.instances``, those of the first pool first."""

    def __init__(self, hybrid: Hybrid, setup: Setup) -> None:
        num_prefill = setup.placement.num_prefill
        pools = range(num_prefill), range(num_prefill, num_prefill + setup.placement.num_decode)
        calibration = Calibration(ComputeFit(setup.compute, EXACT), LinkFit(setup.link, EXACT), setup.delays)
        self._policy = HybridPolicy(hybrid.config, calibration, hybrid.scenario, pools)
        self._present = range(num_prefill + setup.placement.num_decode)
        self._ways: dict[int, Reckoning] = {}
        self._flying: set[int] = set()
        self.moved: list[int] = []  # prompt lengths
        self.stayed: list[int] = []

    def route(self, flight: Flight, now_ps: int, home: int) -> tuple[int, int]:
        """The instances that prefill and decode a request that comes now; ``home``: the colocated arm's choice."""
        now_s = now_ps / PS_PER_S
        way = self._policy.decide(flight.input_len, flight.output_len, self._present, now_s, home).chosen
        self._policy.sent(flight.request_id, flight.input_len, way, now_s)
        self._ways[flight.request_id] = way
        self._flying.add(flight.request_id)
        (self.moved if way.moves else self.stayed).append(flight.input_len)
        return way.prefill_rank, way.decode_rank

    def first_token(self, flight: Flight, now_ps: int) -> None:
        number = flight.request_id
        self._policy.first_token(number, self._ways[number], now_ps / PS_PER_S)

    def landed(self, flight: Flight) -> None:
        """Its KV is where it decodes."""
        number = flight.request_id
        if number in self._flying:
            self._flying.remove(number)
            self._policy.landed(self._ways[number])

    def ended(self, flight: Flight, now_ps: int) -> None:
        self.landed(flight)
        number = flight.request_id
        self._policy.ended(number, self._ways.pop(number), now_ps / PS_PER_S)


def threshold(moved: Sequence[int], stayed: Sequence[int]) -> float:
    """The prompt length from which on requests moved, as far as a length tells: with the fewest exceptions; NaN: none.

    Of equally good ones the smallest.
    """
    if not moved:
        return nan
    lengths = sorted({*moved, *stayed})
    return float(min(lengths, key=lambda at: sum(n < at for n in moved) + sum(n >= at for n in stayed)))
