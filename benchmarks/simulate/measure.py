"""One point of the benchmark: the simulator plays it."""

from __future__ import annotations

import resource
import time

from benchmarks.simulate.point import Measured, Point
from xpyd.economics.cost import ComputeModel, LinkModel
from xpyd.model.spec import ModelSpec
from xpyd.placement import PlacementConfig
from xpyd.router import RouterConfig
from xpyd.scheduler.config import SchedulerConfig
from xpyd.simulate.account import Account
from xpyd.simulate.cluster import Cluster
from xpyd.simulate.config import SimulateConfig
from xpyd.simulate.costs import PS_PER_S
from xpyd.simulate.setup import Handover, Setup
from xpyd.simulate.stream import stream_requests
from xpyd.workload.arrivals import ArrivalConfig
from xpyd.workload.config import ClassConfig, WorkloadConfig
from xpyd.workload.lengths import LengthConfig
from xpyd.workload.slo import SloConfig
from xpyd.workload.traces import TraceConfig

RUN = 10_000  # requests that are in memory at a time
RATE_PER_INSTANCE_RPS = 7.5  # about half of what an instance could prefill


def play(point: Point) -> Measured:
    setup, workload = setup_of(point), workload_of(point)
    account = Account(0, setup.slo, None, with_steps=False, begin_ns=0)
    making_s = playing_s = 0.0
    end_ps = 0
    for block in range(point.num_blocks):
        begin_s = time.process_time()
        cluster = Cluster(setup, account, lambda request_id: False)
        made_s = time.process_time()
        end_ps += cluster.play(stream_requests(workload, block, point.num_requests))
        making_s += made_s - begin_s
        playing_s += time.process_time() - made_s
    num_requests = point.num_blocks * point.num_requests
    assert account.totals.num_finished == num_requests
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Measured(
        making_s=making_s,
        playing_s=playing_s,
        simulated_s=end_ps / PS_PER_S,
        peak_mib=peak_mib,
        num_tokens=account.totals.num_tokens,
        us_per_request=playing_s / num_requests * 1e6,
    )


def setup_of(point: Point) -> Setup:
    """Prefill and decode instances in equal number: an 8B model on one H100-class GPU each, 200 Gb/s."""
    half = point.num_instances // 2
    return Setup(
        spec=ModelSpec("8b", 32, 4096, 32, 8, 128, 14336, 128256, dtype="bfloat16"),
        placement=PlacementConfig(num_prefill=half, num_decode=half),
        scheduler=SchedulerConfig("chunked", 256, 4096, 16, 20_000),
        handover=Handover("layerwise", "pull", "prefill", 1 << 20, 8),
        router=RouterConfig(point.router),  # type: ignore[arg-type]
        slo=SloConfig(1.0, 0.05),
        compute=ComputeModel(6e-3, 2.5e-5, 1e-9, 2e-5, 5.6e-8),
        link=LinkModel(2e-5, 1e-6, 25e9),
        options=SimulateConfig(),
        max_retries=0,
        detect_s=5.0,
    )


def workload_of(point: Point) -> WorkloadConfig:
    """Prompts of 1100 and outputs of 120 tokens at the median, or the lengths of a trace; Poisson arrivals."""
    arrival = ArrivalConfig("poisson", RATE_PER_INSTANCE_RPS * point.num_instances)
    num_requests = min(RUN, point.num_requests)
    if point.trace is not None:
        trace = TraceConfig(point.format, point.trace, skip_empty=True, sort=True, max_input_len=32768)  # type: ignore[arg-type]
        return WorkloadConfig(num_requests, arrival=arrival, trace=trace)
    lengths = (
        LengthConfig("lognormal", median=1100.0, sigma=0.9, max_len=8192),
        LengthConfig("lognormal", median=120.0, sigma=0.8, max_len=2000),
    )
    return WorkloadConfig(num_requests, arrival=arrival, classes=(ClassConfig("all", 1.0, *lengths),))
