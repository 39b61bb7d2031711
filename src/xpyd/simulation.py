"""The ``simulate`` experiment: the blocks of a compare or serve run in simulated time, with the same tables."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Any

from xpyd import compiled
from xpyd.compose import ROOT
from xpyd.config.base import ConfigError
from xpyd.config.modeled import Simulate
from xpyd.economics.frozen import HASH, file_hash
from xpyd.entry import Job
from xpyd.environment import commit, lone_environment
from xpyd.model.checkpoint_config import resolve_spec
from xpyd.order import interleave
from xpyd.records import COLOCATED, DISAGGREGATED, BlockRow, RequestRow
from xpyd.request import Request
from xpyd.run_dir import RowWriter
from xpyd.simulate.account import Account, Histogram, Totals
from xpyd.simulate.cluster import Cluster
from xpyd.simulate.costs import PS_PER_S, to_ns
from xpyd.simulate.model import Costs, at_rate, closed_form, read_calibration
from xpyd.simulate.setup import Handover, Setup
from xpyd.simulate.stream import stream_requests
from xpyd.units import NS_PER_S

SIMULATED = "simulated.json"
QUANTILES = (0.5, 0.9, 0.99)


def run_simulation(config: Simulate, job: Job) -> None:
    """Play every block and write rows, ``simulated.json`` (sums of every block) and environment.json."""
    costs = at_home(config, costs_of(config))
    options = config.simulate
    arms = (COLOCATED, DISAGGREGATED) if options.arms == "compare" else (_lone_arm(config),)
    labels = ["modeled", costs.label]
    if options.rows == "sample":
        labels.append(f"rows of every {options.sample_every}th request")
    job.run_dir.write_json("environment.json", {**lone_environment(ROOT, []), "labels": labels})
    job.say(f"simulator: {compiled.how()}")
    blocks, begin_ns = [], 0
    with RowWriter(job.run_dir, rank=0) as rows:
        for number, (pair, arm) in enumerate(interleave(config.num_pairs, arms)):
            began_s = time.perf_counter()
            totals, end_ps = _play(config, costs, number, pair, arm, begin_ns, rows)
            wall_s = time.perf_counter() - began_s
            blocks.append({"block": number, "pair": pair, "arm": arm, "wall_s": wall_s, **summary(totals, end_ps)})
            job.say(
                f"block {number + 1}  pair {pair}  {arm:<13}  {totals.num_requests} requests, "
                f"{end_ps / PS_PER_S:.1f} s of simulated time in {wall_s:.2f} s"
            )
            begin_ns += to_ns(end_ps) + NS_PER_S
    job.run_dir.write_json(SIMULATED, {"costs": asdict(costs), "blocks": blocks})


def costs_of(config: Simulate) -> Costs:
    """Raises ConfigError for a calibration file that does not fit."""
    spec, path = resolve_spec(config.model), config.simulate.calibration
    if path is None:
        return closed_form(spec, config.machine, config.fabric.rate_gbps)
    try:
        costs = read_calibration(Path(path), spec)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if config.simulate.scatter and not costs.scatters:
        raise ConfigError(
            f"simulate.scatter=true: {path} does not say how steps scatter; calibrate anew, or set it to false"
        )
    return costs


def origin(config: Simulate, costs: Costs) -> dict[str, Any]:
    """What a prediction that is frozen rests on, and when it was made."""
    path = config.simulate.calibration
    return {
        "written_at": datetime.now().isoformat(),
        "commit": commit(ROOT),
        "costs": asdict(costs),
        "calibration": None if path is None else {"path": str(Path(path).absolute()), HASH: file_hash(Path(path))},
    }


def at_home(config: Simulate, costs: Costs) -> Costs:
    """On the wire of ``fabric.rate_gbps``: as calibrated, unless that was done with another rate."""
    gbps = config.fabric.rate_gbps
    if costs.made_gbps in (None, gbps):
        return costs
    label = f"{costs.label}, its link taken from {costs.made_gbps:g} to {gbps:g} Gb/s"
    return replace(on_link(config, costs, gbps), label=label)


def on_link(config: Simulate, costs: Costs, link_gbps: float) -> Costs:
    """The costs of ``config`` on another wire. A data sheet's link is as fast as its wire, whatever that is."""
    link = costs.link if config.simulate.calibration is not None else replace(costs.link, bytes_per_s=inf)
    return replace(costs, link=at_rate(link, link_gbps, costs.calibrated_gbps))


def setup_of(config: Simulate, arm: str, costs: Costs, seed: int = 0) -> Setup:
    """One arm of the experiment; steps that scatter are drawn from ``seed``."""
    transfer, faults = config.transfer, config.faults
    placement = config.placement
    if arm == COLOCATED and not placement.num_colocated:
        placement = placement.colocated()
    return Setup(
        spec=resolve_spec(config.model),
        placement=placement,
        scheduler=config.scheduler,
        handover=Handover(
            transfer.mode,
            transfer.direction,
            transfer.first_token,
            transfer.max_piece_bytes,
            transfer.pieces_in_flight,
        ),
        router=config.router,
        slo=config.slo,
        compute=costs.compute,
        link=costs.link,
        moving=costs.moving,
        delays=costs.delays,
        engines=costs.engines,
        scatters={} if config.simulate.scatter is False else costs.scatters,
        seed=seed,
        options=config.simulate,
        max_retries=faults.max_retries or 0,
        detect_s=faults.detect_s,
    )


def summary(totals: Totals, end_ps: int) -> dict[str, Any]:
    """A block in figures: counts, rates and quantiles, in seconds."""
    found: dict[str, Any] = {}
    for name, value in ((each.name, getattr(totals, each.name)) for each in fields(totals)):
        if isinstance(value, Histogram):
            found |= {f"{name}_p{share * 100:g}_s": value.quantile_s(share) for share in QUANTILES}
            found |= {f"{name}_mean_s": value.mean_s, f"{name}_max_s": value.max_ps / PS_PER_S}
        else:
            found[name] = value
    lasted_s = end_ps / PS_PER_S
    attainment = totals.num_met / totals.num_requests
    return {"lasted_s": lasted_s, "attainment": attainment, "goodput_rps": totals.num_met / lasted_s, **found}


def _play(
    config: Simulate, costs: Costs, number: int, pair: int, arm: str, begin_ns: int, rows: RowWriter
) -> tuple[Totals, int]:
    options = config.simulate

    def recorded(request_id: int) -> bool:
        return options.rows == "all" or (options.rows == "sample" and request_id % options.sample_every == 0)

    account = Account(number, config.slo, rows, options.rows == "all", begin_ns)
    num_recorded = 0

    def listed() -> Iterator[Request]:
        """The requests, with a row for each one that is recorded."""
        nonlocal num_recorded
        for request in stream_requests(config.workload, pair, options.num_requests):
            if recorded(request.request_id):
                num_recorded += 1
                rows.write(
                    RequestRow(
                        number,
                        pair,
                        arm,
                        request.request_id,
                        request.class_name,
                        request.input_len,
                        request.output_len,
                        request.arrival_offset_ns,
                    )
                )
                rows.flush_if_due()
            yield request

    cluster = Cluster(setup_of(config, arm, costs, pair), account, recorded)
    end_ps = cluster.play(listed(), config.workload.concurrency)
    kv_bytes = account.totals.kv_bytes
    if num_recorded:
        end_ns = begin_ns + to_ns(end_ps)
        rows.write(BlockRow(number, pair, arm, begin_ns, end_ns, num_recorded, 0, kv_bytes, kv_bytes, -1))
    rows.flush()
    return account.totals, end_ps


def _lone_arm(config: Simulate) -> str:
    return COLOCATED if config.placement.num_colocated else DISAGGREGATED
