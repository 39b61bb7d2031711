"""How a run is put together: its blocks, warm-up, the frozen prediction, the environment, the end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from statistics import median
from typing import Any

from xpyd.compose import ROOT
from xpyd.config.compare import Compare
from xpyd.config.serve import Serve
from xpyd.economics.cost import ComputePoint, LinkFit, LinkModel, LinkPoint, fit_compute, score_link
from xpyd.economics.delays import fit_delays
from xpyd.economics.predict import predict, to_json
from xpyd.economics.scenario import Calibration, Scenario, calibration_from, classes_of, fit_calibration
from xpyd.entry import Job, mpi_library
from xpyd.environment import environment, machine
from xpyd.model.spec import ModelSpec
from xpyd.order import interleave
from xpyd.placement import Placement
from xpyd.records import COLOCATED, COLOCATED_TUNED, DISAGGREGATED, HYBRID, PREDICTED
from xpyd.run_dir import RowWriter
from xpyd.scheduler.config import SchedulerConfig
from xpyd.units import NS_PER_S, gbps_to_bytes_per_s
from xpyd.worker.block import Block, Setup, warm_up_blocks
from xpyd.worker.calibrate import calibrate, time_messages
from xpyd.worker.session import Session

ENVIRONMENT = "environment.json"
MAX_RATE_RPS = 1e6  # a trace whose rows share one time stamp has no rate


def open_session(job: Job, scheduler: SchedulerConfig | None = None) -> Session:
    """Build every rank's side of the run and write environment.json. Collective.

    ``scheduler``: what the session makes room for, where blocks have schedulers of their own.
    """
    config: Serve = job.config
    session = build_session(config, job, scheduler)
    routes = session.links.routes if session.links is not None else {}
    write_environment(job, session.placement, session.cores.mine, routes, config.fabric.emulated)
    describe(session, config, job)
    return session


def build_session(
    config: Serve, job: Job, scheduler: SchedulerConfig | None = None, rows: RowWriter | None = None
) -> Session:
    """Every rank's side of one placement. ``rows``: of a run that holds several sessions. Collective."""
    setup = Setup(
        config.model,
        config.placement,
        scheduler or config.scheduler,
        config.transport,
        config.transfer,
        config.fabric,
        config.sampling,
        config.router,
        config.run.drain_timeout_s,
        config.faults,
        config.speculation,
    )
    return Session(setup, job.comm, job.run_dir, lambda: job.stop.requested, rows)


def describe(session: Session, config: Serve, job: Job) -> None:
    """Who does what, and over which wire."""
    job.say(f"{config.placement.name}: {session.placement.describe()}")
    for pair, route in (session.links.routes if session.links is not None else {}).items():
        job.say(f"KV {pair} over {config.transport.name}: {route}")


def write_environment(job: Job, placement: Placement, cores: list[int], routes: dict[str, str], emulated: bool) -> None:
    """Gather what every rank runs on and write environment.json. Collective."""
    facts = job.comm.gather((cores, machine()))
    if facts is not None:
        found = environment(ROOT, placement, routes, facts, mpi_library(), emulated)
        before = job.run_dir.read_json(ENVIRONMENT)
        job.run_dir.write_json(ENVIRONMENT, with_attempts(before, found, job.run_dir.attempt))


def with_attempts(before: dict[str, Any], now: dict[str, Any], attempt: int) -> dict[str, Any]:
    """The environment of a run after attempts in other places: this one's, with the hosts and labels of all.

    A commit or MPI library that changed in between shows as ``old, new``: such a run is no repeat of an unbroken one.
    """
    mine = {key: now[key] for key in ("started_at", "hosts", "commit", "mpi")}
    job = os.environ.get("SLURM_JOB_ID")
    attempts = [*before.get("attempts", []), {"attempt": attempt, "slurm_job": job, **mine}]
    if not before:
        return {**now, "attempts": attempts}
    return {
        **now,
        "started_at": before["started_at"],
        **{key: list(dict.fromkeys([*before[key], *now[key]])) for key in ("hosts", "labels")},
        **{key: ", ".join(dict.fromkeys(str(tried[key]) for tried in attempts)) for key in ("commit", "mpi")},
        "attempts": attempts,
    }


def compare_blocks(config: Compare) -> list[Block]:
    """Every block of a comparison; the blocks of a pair play the same requests at the same arrival times."""
    order = interleave(config.num_pairs, config.arms)
    return [
        replace(
            _block(config, number, pair, arm), scheduler=config.scheduler_of(arm), speculates=config.speculates(arm)
        )
        for number, (pair, arm) in enumerate(order)
    ]


def serve_blocks(config: Serve) -> list[Block]:
    arm = COLOCATED if config.placement.num_colocated else DISAGGREGATED
    return [_block(config, number, number, arm) for number in range(config.num_blocks)]


def play_all(session: Session, blocks: list[Block], job: Job) -> None:
    """Warm up, then play every block that no attempt has ended; cut short, without DONE, when a stop was asked for."""
    todo = [block for block in blocks if block.number not in job.completed]
    if len(todo) < len(blocks):
        job.say(f"resumed, attempt {job.run_dir.attempt}: {len(blocks) - len(todo)} of {len(blocks)} blocks are done")
    for block in warm_up_blocks(todo):
        session.play(block)
    for block in todo:
        played = session.play(block)
        job.stop.num_failed += played.num_failed if played is not None else 0
        if session.bcast(played.stopped if played is not None else None):
            job.say("stopped on request: no further blocks; the run folder stays partial")
            job.stop.cut_short = True
            return
        job.stop.num_blocks += 1
        if played is not None:
            seconds = (played.end_ns - played.begin_ns) / NS_PER_S
            job.say(
                f"block {block.number + 1}/{len(blocks)}  pair {block.pair}  {block.arm:<15}  "
                f"{len(block.requests)} requests in {seconds:.2f} s"
            )
    session.check_whole()


def write_prediction(session: Session, config: Compare, job: Job) -> None:
    """Calibrate on points that are not scored; write predicted.json before the first request is sent. Collective.

    A resumed run keeps the prediction that its first attempt froze.
    """
    if session.comm.bcast((job.run_dir.path / PREDICTED).exists()):
        return
    if why := _not_predicted(config):
        job.say(f"no prediction: {why}")
        return
    job.say("calibrating: engine steps, link and messages, each alone")
    points, delays = calibrate(session), time_messages(session)
    if points is None:
        return
    calibration = replace(fit_points(*points, config.fabric.rate_gbps, job), delays=fit_delays(delays))
    classes = to_json(predict(calibration, scenario_of(config, config.num_pairs, session.spec, config.scheduler)))
    if config.tuned is not None:
        tuned = predict(calibration, scenario_of(config, config.num_pairs, session.spec, config.tuned))
        for length, (colocated, _) in tuned.items():
            classes[length][COLOCATED_TUNED] = asdict(colocated)
    content = {"written_at": datetime.now().isoformat(), "calibration": asdict(calibration), "classes": classes}
    timed: dict[str, Sequence[Any]] = {"steps": points[0], "transfers": points[1], "delays": delays}
    listed = {name: [asdict(each) for each in own] for name, own in timed.items()}
    job.run_dir.write_json(PREDICTED, {**content, "points": listed})


def _not_predicted(config: Compare) -> str:
    """What the cost model does not know of this run; empty where it knows all."""
    if not config.placement.alone:
        return "the cost model knows instances of one rank"
    if config.speculation.on:
        return "the cost model knows steps of one token a sequence"
    policies = [scheduler.policy for scheduler in (config.scheduler, config.tuned) if scheduler is not None]
    return "the cost model knows no wait for a static batch to end" if "static" in policies else ""


def plan_hybrid(session: Session, config: Compare, job: Job) -> None:
    """Give rank 0, which routes, what the hybrid arm is reckoned from: the calibration that the prediction rests on."""
    if config.hybrid.on and job.rank == 0:
        calibration = calibration_from(job.run_dir.read_json(PREDICTED)["calibration"])
        scheduler = config.scheduler_of(HYBRID)
        scenario = scenario_of(config, config.num_pairs, session.spec, scheduler)
        session.hybrid = config.hybrid, calibration, scenario


def fit_points(steps: list[ComputePoint], transfers: list[LinkPoint], rate_gbps: float, job: Job) -> Calibration:
    """Fit both models; a link too noisy to show a bandwidth gets the fabric's nominal one, and says so."""
    try:
        return fit_calibration(steps, transfers)
    except ValueError as error:
        job.say(f"warning: {error}; predicting with fabric.rate_gbps={rate_gbps} instead")
    alpha_s = median(point.seconds for point in transfers)
    link = LinkModel(alpha_s, 0.0, gbps_to_bytes_per_s(rate_gbps))
    return Calibration(fit_compute(steps), LinkFit(link, score_link(link, transfers)))


def scenario_of(config: Serve, num_pairs: int, spec: ModelSpec, scheduler: SchedulerConfig) -> Scenario:
    """What the prediction may know: the planned lengths and rate, and the limits of the ranks; no measured request."""
    arrival = config.workload.arrival
    planned = [request for pair in range(num_pairs) for request in config.workload.build(pair)]
    concurrency = config.workload.concurrency
    cv2 = {"fixed": 0.0, "gamma": (arrival.cv or 1.0) ** 2}.get(arrival.kind, 1.0) if arrival else 1.0
    rate_rps = None if concurrency else min(config.workload.summary().rate_rps or MAX_RATE_RPS, MAX_RATE_RPS)
    return Scenario(
        spec=spec,
        classes=classes_of(planned),
        num_requests=config.workload.num_requests,
        num_prefill=config.placement.num_prefill,
        num_decode=config.placement.num_decode,
        policy=scheduler.policy,
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        block_size=scheduler.block_size,
        num_kv_blocks=scheduler.num_kv_blocks,
        mode=config.transfer.mode,
        max_piece_bytes=config.transfer.max_piece_bytes,
        router="round_robin" if config.router.policy == "round_robin" else "least_outstanding",
        rate_rps=rate_rps,
        concurrency=concurrency,
        arrival_cv2=cv2,
    )


def finish(job: Job) -> None:
    """After every rank has closed its rows: merge the tables and write DONE, unless the run was cut short."""
    job.comm.Barrier()
    if job.rank == 0 and not job.stop.cut_short:
        job.run_dir.finish()
    job.comm.Barrier()


def _block(config: Serve, number: int, pair: int, arm: str) -> Block:
    return Block(number, pair, arm, config.workload.build(pair), config.workload.concurrency)
