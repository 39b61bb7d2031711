"""The ``calibrate`` experiment: fits step times and link on the user's own ranks, and writes calibration.yaml.

The fits are those that compare makes before it predicts (``worker.calibrate``, ``economics.cost``), from more rounds,
with an interval for every coefficient. To them come what steps take in a run, and what requests wait for messages
(``worker.played``), and what moving KV costs the steps beside it (``worker.beside``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from statistics import median
from typing import Any, TypeVar

import numpy as np
import yaml

from xpyd.calibration_points import FILE, Points, pooled, read_points
from xpyd.config.base import ConfigError
from xpyd.config.serve import Calibrate
from xpyd.economics.cost import ComputeModel, ComputePoint, LinkPoint, fit_compute, fit_link, score_compute, score_link
from xpyd.economics.delays import DelayPoint, fit_delays
from xpyd.economics.engine import fit_engine, scatter, size_of, step_s
from xpyd.economics.moving import BesidePoint, fit_moving
from xpyd.entry import Job
from xpyd.placement import Role
from xpyd.streams import merge
from xpyd.trial import open_session
from xpyd.worker.beside import measure_beside
from xpyd.worker.block import warm_up_blocks
from xpyd.worker.calibrate import calibrate
from xpyd.worker.played import BLOCKS_PER_ROUND, calibration_blocks, delay_points, is_lightest, played_points

CALIBRATION = "calibration.yaml"
# 1 had no `moving`, `engine`, `scatter` and `slowness`, and said no version; 2 did not say which blocks were played
# within seconds of each other; 3 had one transfer at a time; 4 had no `delays`.
VERSION = 5
NUM_RESAMPLES = 200
LEVEL = 0.95
PREFILLING = (Role.PREFILL.value, Role.COLOCATED.value)

Point = TypeVar("Point", ComputePoint, LinkPoint, BesidePoint, DelayPoint)
Timed = TypeVar("Timed", ComputePoint, LinkPoint)


def run_calibration(config: Calibrate, job: Job) -> None:
    """Time steps alone and in short blocks, transfers, and each beside the other; collective. Rank 0 writes the file.

    Raises ConfigError where a calibration of ``pool`` cannot be fitted together with this one.
    """
    holds_for = conditions(config)
    try:
        earlier = read_points(config.pool, holds_for)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    own = Points()
    with open_session(job) as session:
        for number in range(config.num_rounds):
            job.say(f"round {number + 1}/{config.num_rounds}: engine steps and link alone, then short blocks")
            found = calibrate(session)
            if found is not None:
                own.rounds.append(found[0])
                own.transfers += found[1]
            blocks = calibration_blocks(number, config.scheduler.num_kv_blocks * config.scheduler.block_size)
            for block in [*(warm_up_blocks(blocks) if number == 0 else []), *blocks]:
                session.play(block)
        job.say("hand-offs beside steps")
        own.beside += measure_beside(session, config.num_rounds) or []
    if job.rank == 0:
        steps, stages, tokens = (merge(job.run_dir.path, table).to_pylist() for table in ("steps", "stages", "tokens"))
        own.played = played_points(steps, config.num_rounds * BLOCKS_PER_ROUND)
        own.delays = delay_points(*([row for row in rows if is_lightest(row["block"])] for rows in (stages, tokens)))
        content = {"version": VERSION, "conditions": {**holds_for, **circumstances(config, job)}}
        content |= fitted([*earlier, own])
        job.run_dir.write_json(FILE, own.content(holds_for))
        job.run_dir.write_text(CALIBRATION, yaml.safe_dump(content, sort_keys=False))
        job.say(f"calibration: {job.run_dir.path / CALIBRATION}")


def fitted(calibrations: Sequence[Points]) -> dict[str, Any]:
    """All models with intervals, how well they hold, and how well the sum of parts says what a mixed step takes.

    ``compute`` is of steps alone, ``engine`` makes steps of a role in a run of them, ``scatter`` says how these lie
    about that. ``delays``: what requests wait for messages. ``slowness``: of the steps of each block, relative to the
    fit of all, by calibration; of a lone one by round. Raises ValueError where transfers show no bandwidth
    (``fit_link``).
    """
    points = pooled(calibrations)
    steps, transfers, beside, delays = points.steps, points.transfers, points.beside, points.delays
    compute, link = fit_compute(middles(steps), hides=True), fit_link(middles(transfers))
    mixed = [point for point in steps if point.num_prefill_tokens and point.num_decode_seqs]
    apart = fit_compute([p for p in middles(steps) if not (p.num_prefill_tokens and p.num_decode_seqs)], hides=True)
    moving = with_intervals(
        asdict(fit_moving(beside)), beside, lambda drawn: asdict(fit_moving(drawn)), lambda point: point.setting
    )
    waited = with_intervals(asdict(fit_delays(delays)), delays, lambda drawn: asdict(fit_delays(drawn)))
    return {
        "compute": with_intervals(
            asdict(compute.model), steps, lambda drawn: asdict(fit_compute(middles(drawn), hides=True).model)
        ),
        "link": with_intervals(asdict(link.model), transfers, lambda drawn: asdict(fit_link(middles(drawn)).model)),
        "moving": moving if beside else None,
        "delays": waited if delays else None,
        **fitted_engine(compute.model, calibrations),
        "scores": {
            "compute": asdict(score_compute(compute.model, steps)),
            "link": asdict(score_link(link.model, transfers)),
        },
        # Of steps with a chunk beside decodes, predicted by a fit that has seen neither beside the other.
        "interference": asdict(score_compute(apart.model, mixed)) if mixed else None,
    }


def middles(points: Sequence[Timed]) -> list[Timed]:
    """One point for each setting, of the median seconds of its repeats.

    A machine that is slow for a while lengthens all that is timed just then, and so some settings of a calibration more
    than others: fitted as they are, such points tell of a cost that is none.
    """
    groups: defaultdict[Hashable, list[Timed]] = defaultdict(list)
    for point in points:
        groups[all_but_seconds(point)].append(point)
    return [replace(own[0], seconds=median(point.seconds for point in own)) for own in groups.values()]


def fitted_engine(alone: ComputeModel, calibrations: Sequence[Points]) -> dict[str, Any]:
    """What the steps that were played say: engine and scatter by role, and the slowness of every block, in groups."""
    played = [each for points in calibrations for each in points.played]
    if not any(played):
        rounds = [[(alone, point) for point in own] for points in calibrations for own in points.rounds]
        return {"engine": {}, "scatter": {}, "slowness": [[slowness(own)] for own in rounds]}
    by_role: defaultdict[str, list[ComputePoint]] = defaultdict(list)
    for each in played:
        for role, own in each.items():
            by_role[role] += own
    groups = alike(by_role)
    models = {role: fit_engine(alone, own) for role, own in groups.items()}
    in_run = {role: model.of(alone) for role, model in models.items()}
    return {
        "engine": {
            role: with_intervals(asdict(models[role]), own, lambda drawn: asdict(fit_engine(alone, drawn)), size_of)
            for role, own in groups.items()
        },
        "scatter": {
            role: {name: np.round(each, 4).tolist() for name, each in asdict(scatter(in_run[role], blocks)).items()}
            for role, blocks in ((role, [_blocks(points, role) for points in calibrations]) for role in by_role)
        },
        "slowness": [
            [slowness([(in_run[role], point) for role, own in each.items() for point in own]) for each in group if each]
            for group in block_groups(calibrations)
        ],
    }


def alike(by_role: Mapping[str, list[ComputePoint]]) -> dict[str, list[ComputePoint]]:
    """The steps that each role's factors are fitted to: of workers that prefill, those of either role.

    A prompt costs them the same, and a calibration plays few: fitted apart, the two came out 7 % from each other, where
    runs had them equal.
    """
    prefilling = [point for role in PREFILLING for point in by_role.get(role, [])]
    return {role: prefilling if role in PREFILLING else own for role, own in by_role.items()}


def _blocks(points: Points, role: str) -> list[list[ComputePoint]]:
    return [each[role] for each in points.played if role in each]


def block_groups(calibrations: Sequence[Points]) -> list[list[dict[str, list[ComputePoint]]]]:
    """The blocks that were played within seconds of each other: of one calibration; of a lone one, of one round."""
    if len(calibrations) > 1:
        return [points.played for points in calibrations]
    (points,) = calibrations
    size = len(points.played) // len(points.rounds)
    return [points.played[i : i + size] for i in range(0, len(points.played), size)]


def slowness(steps: Sequence[tuple[ComputeModel, ComputePoint]]) -> float:
    """How many times longer than their models say these steps took: the median."""
    return median(point.seconds / step_s(model, point) for model, point in steps)


def all_but_seconds(point: ComputePoint | LinkPoint | BesidePoint | DelayPoint) -> Hashable:
    """What repeats of a point have in common, where nothing else was measured of them."""
    return tuple(value for name, value in vars(point).items() if name != "seconds")


def with_intervals(
    values: dict[str, float],
    points: Sequence[Point],
    fit: Callable[[Sequence[Point]], dict[str, float]],
    setting: Callable[[Point], Hashable] = all_but_seconds,
) -> dict[str, dict[str, float]]:
    """Each coefficient as value, low and high: a bootstrap over the repeats of every setting."""
    groups: defaultdict[Hashable, list[Point]] = defaultdict(list)
    for point in points:
        groups[setting(point)].append(point)
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(NUM_RESAMPLES):
        chosen = [group[i] for group in groups.values() for i in generator.integers(len(group), size=len(group))]
        try:
            drawn.append(fit(chosen))
        except ValueError:  # this draw shows no bandwidth
            continue
    tail = (1 - LEVEL) / 2
    return {
        name: {
            "value": float(value),
            "low": float(np.quantile([each[name] for each in drawn], tail)) if drawn else float("nan"),
            "high": float(np.quantile([each[name] for each in drawn], 1 - tail)) if drawn else float("nan"),
        }
        for name, value in values.items()
    }


def conditions(config: Calibrate) -> dict[str, Any]:
    """What the figures hold for."""
    return {
        "model": config.model.name,
        "dtype": config.model.dtype,
        "placement": config.placement.name,
        "block_size": config.scheduler.block_size,
        "transport": config.transport.name,
        "fabric": config.fabric.name,
        "rate_gbps": config.fabric.rate_gbps,
        "codec": config.transfer.codec.name,
    }


def circumstances(config: Calibrate, job: Job) -> dict[str, Any]:
    """When and how they were found."""
    environment = job.run_dir.read_json("environment.json")
    return {
        "num_rounds": config.num_rounds,
        "pool": list(config.pool),
        "level": LEVEL,
        "made_at": datetime.now().isoformat(),
        "labels": environment.get("labels", []),
        "commit": environment.get("commit", ""),
    }
