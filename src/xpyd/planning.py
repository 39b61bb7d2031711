"""The ``plan`` experiment: how much each way to use the ranks sustains, in simulated time, and where the answer turns.

Every candidate climbs a ladder of rates and then bisects, as ``saturation`` does with real ranks; a repeat draws the
same requests for all. What was found is frozen to ``plan.json`` (``economics.frozen``), which ``experiments.regret``
holds real ranks against. Then the best split and the best colocated candidate climb anew on other links and lengths.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import nan
from pathlib import Path
from statistics import fmean

from xpyd.codec_terms import read_codec_terms
from xpyd.compose import ROOT
from xpyd.config.base import ConfigError
from xpyd.config.load import dump_config
from xpyd.config.modeled import Plan
from xpyd.economics.codecs import CodecTerm
from xpyd.economics.frozen import HASH, sealed
from xpyd.entry import Job
from xpyd.environment import lone_environment
from xpyd.hybrid import HybridConfig
from xpyd.model.checkpoint_config import resolve_spec
from xpyd.plan_file import PLAN
from xpyd.plan_search import Candidate, candidates
from xpyd.records import COLOCATED, DISAGGREGATED, PlanRow
from xpyd.request import Request
from xpyd.run_dir import RowWriter
from xpyd.simulate.account import Account, Totals
from xpyd.simulate.cluster import Cluster
from xpyd.simulate.costs import PS_PER_S
from xpyd.simulate.hybrid import hybrid_for, threshold
from xpyd.simulate.model import Costs
from xpyd.simulate.setup import Setup
from xpyd.simulation import at_home, costs_of, on_link, origin, setup_of

AS_ASKED = ""  # the axis of the question itself
LINK, LENGTH = "link_gbps", "input_len"
Attained = dict[float, float]


def run_plan(config: Plan, job: Job) -> None:
    """Write a row for every candidate, rate and repeat; in the calling process."""
    spec = resolve_spec(config.model)
    measured = _measured_codecs(config)
    ways = candidates(config.plan, spec.num_params() * spec.dtype_bytes, measured)
    measured_costs = costs_of(config)
    costs = at_home(config, measured_costs)
    labels = ["modeled", costs.label]
    labels += ["codecs assumed"] * bool(config.plan.codecs) + ["codecs measured elsewhere"] * bool(measured)
    job.run_dir.write_json("environment.json", {**lone_environment(ROOT, []), "labels": labels})
    begin_s = time.monotonic()
    with RowWriter(job.run_dir, rank=0) as rows:
        sustained: dict[Candidate, float] = {}
        asked: list[PlanRow] = []
        for number, way in enumerate(ways):
            climbed = _climb(config, costs, way, AS_ASKED, 0.0)
            _keep(rows, climbed)
            asked += climbed
            sustained[way] = _sustained(config, climbed)
            left_s = (time.monotonic() - begin_s) / (number + 1) * (len(ways) - number - 1)
            job.say(f"{number + 1}/{len(ways)} {way.name}: sustains {sustained[way]:g} /s, about {left_s:.0f} s left")
            if job.stop.requested:
                job.say("stopped on request: what was played is kept")
                return
        _freeze(config, costs, labels, asked, job)
        for axis, value, varied, varied_costs in _variants(config, costs, measured_costs):
            for way in _best(sustained):
                climbed = _climb(varied, varied_costs, way, axis, value)
                _keep(rows, climbed)
                job.say(f"{axis}={value:g} {way.name}: sustains {_sustained(varied, climbed):g} /s")


def _measured_codecs(config: Plan) -> tuple[CodecTerm, ...]:
    """Raises ConfigError where ``plan.codec_run`` cannot be read."""
    if config.plan.codec_run is None:
        return ()
    try:
        return read_codec_terms(Path(config.plan.codec_run))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _best(sustained: Mapping[Candidate, float]) -> Iterator[Candidate]:
    """The best colocated and the best split candidate; what a hybrid one does, these two bound."""
    for splits in (False, True):
        kind = [way for way in sustained if way.splits == splits and not way.hybrid]
        if kind:
            yield max(kind, key=lambda way: sustained[way])


def _variants(config: Plan, costs: Costs, measured: Costs) -> Iterator[tuple[str, float, Plan, Costs]]:
    """The question on another link (from what was ``measured``), or with prompts of another length."""
    for gbps in config.plan.link_gbps:
        yield LINK, gbps, config, on_link(config, measured, gbps)
    for input_len in config.plan.input_lens:
        yield LENGTH, float(input_len), replace(config, workload=replace(config.workload, input_len=input_len)), costs


def _climb(config: Plan, costs: Costs, way: Candidate, axis: str, value: float) -> list[PlanRow]:
    """Play one candidate at the rates that its search asks for."""
    setup = _setup(config, costs, way)
    attained: Attained = {}
    rows: list[PlanRow] = []
    while (rate := config.search.next_rate(attained)) is not None:
        workload = config.workload_at(rate)
        played = [_play(way, setup, workload.build(repeat)) for repeat in range(config.search.num_repeats)]
        own = [_row(way, axis, value, rate, repeat, each) for repeat, each in enumerate(played)]
        attained[rate] = fmean(row.attainment for row in own)
        rows += own
    return rows


def _sustained(config: Plan, rows: Sequence[PlanRow]) -> float:
    """The highest rate that one candidate sustains, 0 for none."""
    by_rate: defaultdict[float, list[float]] = defaultdict(list)
    for row in rows:
        by_rate[row.rate_rps].append(row.attainment)
    return config.search.bracket({rate: fmean(shares) for rate, shares in by_rate.items()}).low_rps or 0.0


def _keep(writer: RowWriter, rows: Sequence[PlanRow]) -> None:
    for row in rows:
        writer.write(row)
    writer.flush()


def _freeze(config: Plan, costs: Costs, labels: list[str], rows: Sequence[PlanRow], job: Job) -> None:
    """Every way as it was played, and the question: from these the advice follows, and they cannot change unseen."""
    content = sealed(
        {
            **origin(config, costs),
            "labels": labels,
            "config": dump_config(config),
            "ways": [asdict(row) for row in rows],
        }
    )
    job.run_dir.write_json(PLAN, content)
    job.say(
        f"frozen: {job.run_dir.path / PLAN}, sha256 {content[HASH][:12]}; to see what following it costs: "
        f"python -m experiments.regret regret.plan={job.run_dir.path}"
    )


def _setup(config: Plan, costs: Costs, way: Candidate) -> Setup:
    """What is simulated of a candidate, whatever the rate."""
    transfer = replace(config.transfer, mode=way.mode) if way.mode else config.transfer
    asked = replace(config, placement=way.placement, transfer=transfer)
    return replace(setup_of(asked, DISAGGREGATED if way.splits else COLOCATED, costs), codec=way.codec)


@dataclass(frozen=True)
class _Played:
    """One simulated block: its sums, when its last request ended, and who moved."""

    totals: Totals
    end_s: float
    moved_share: float
    threshold_tokens: float


def _play(way: Candidate, setup: Setup, requests: Sequence[Request]) -> _Played:
    """One simulated block without rows."""
    if way.hybrid:
        setup = replace(setup, hybrid=hybrid_for(setup, HybridConfig("cost"), requests))
    account = Account(0, setup.slo, None, False, 0)
    cluster = Cluster(setup, account, lambda _: False)
    end_s = cluster.play(iter(requests)) / PS_PER_S
    if cluster.hybrid is None:
        return _Played(account.totals, end_s, float(way.splits), nan)
    moved, stayed = cluster.hybrid.moved, cluster.hybrid.stayed
    return _Played(account.totals, end_s, len(moved) / len(requests), threshold(moved, stayed))


def _row(way: Candidate, axis: str, value: float, rate_rps: float, repeat: int, played: _Played) -> PlanRow:
    totals, end_s = played.totals, played.end_s
    placement = way.placement
    return PlanRow(
        candidate=way.name,
        num_prefill=placement.num_prefill,
        prefill_tp=placement.prefill_tp,
        num_decode=placement.num_decode,
        decode_tp=placement.decode_tp,
        num_colocated=placement.num_colocated,
        colocated_tp=placement.colocated_tp or 1,
        mode=way.mode,
        codec=way.codec.name if way.codec is not None else "",
        hybrid=way.hybrid,
        axis=axis,
        value=value,
        rate_rps=rate_rps,
        repeat=repeat,
        attainment=totals.num_met / totals.num_requests,
        goodput_rps=totals.num_met / end_s,
        good_tokens_per_s=totals.num_met_tokens / end_s,
        ttft_p99_s=totals.ttft.quantile_s(0.99),
        itl_p99_s=totals.itl.quantile_s(0.99),
        moved_share=played.moved_share,
        threshold_tokens=played.threshold_tokens,
    )
