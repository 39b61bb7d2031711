"""The ``calibrate`` experiment: fits step times and link on the user's own ranks, and writes calibration.yaml.

The fits are those that compare makes before it predicts (``worker.calibrate``, ``economics.cost``), from more rounds,
with an interval for every coefficient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, TypeVar

import numpy as np
import yaml

from xpyd.config.serve import Calibrate
from xpyd.economics.cost import ComputePoint, LinkPoint, fit_compute, fit_link, score_compute
from xpyd.entry import Job
from xpyd.trial import open_session
from xpyd.worker.calibrate import calibrate

CALIBRATION = "calibration.yaml"
NUM_RESAMPLES = 200
LEVEL = 0.95

Point = TypeVar("Point", ComputePoint, LinkPoint)


def run_calibration(config: Calibrate, job: Job) -> None:
    """Time every worker's steps and one pair's transfers, ``num_rounds`` times; collective. Rank 0 writes the file."""
    steps: list[ComputePoint] = []
    transfers: list[LinkPoint] = []
    with open_session(job) as session:
        for number in range(config.num_rounds):
            job.say(f"round {number + 1}/{config.num_rounds}: engine steps and link, each alone")
            found = calibrate(session)
            if found is not None:
                steps += found[0]
                transfers += found[1]
    if job.rank == 0:
        content = {"conditions": conditions(config, job), **fitted(steps, transfers)}
        job.run_dir.write_text(CALIBRATION, yaml.safe_dump(content, sort_keys=False))
        job.say(f"calibration: {job.run_dir.path / CALIBRATION}")


def fitted(steps: Sequence[ComputePoint], transfers: Sequence[LinkPoint]) -> dict[str, Any]:
    """Both models with intervals, how well they hold, and how well the sum of parts says what a mixed step takes.

    Raises ValueError where transfers show no bandwidth (``fit_link``).
    """
    compute, link = fit_compute(steps), fit_link(transfers)
    mixed = [point for point in steps if point.num_prefill_tokens and point.num_decode_seqs]
    apart = fit_compute([point for point in steps if not (point.num_prefill_tokens and point.num_decode_seqs)])
    return {
        "compute": with_intervals(asdict(compute.model), steps, lambda points: asdict(fit_compute(points).model)),
        "link": with_intervals(asdict(link.model), transfers, lambda points: asdict(fit_link(points).model)),
        "scores": {"compute": asdict(compute.score), "link": asdict(link.score)},
        # Of steps with a chunk beside decodes, predicted by a fit that has seen neither beside the other.
        "interference": asdict(score_compute(apart.model, mixed)) if mixed else None,
    }


def with_intervals(
    values: dict[str, float], points: Sequence[Point], fit: Callable[[Sequence[Point]], dict[str, float]]
) -> dict[str, dict[str, float]]:
    """Each coefficient as value, low and high: a bootstrap over the repeats of every setting."""
    groups: defaultdict[Hashable, list[Point]] = defaultdict(list)
    for point in points:
        groups[tuple(value for name, value in asdict(point).items() if name != "seconds")].append(point)
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


def conditions(config: Calibrate, job: Job) -> dict[str, Any]:
    """What the figures hold for."""
    environment = job.run_dir.read_json("environment.json")
    return {
        "model": config.model.name,
        "dtype": config.model.dtype,
        "placement": config.placement.name,
        "block_size": config.scheduler.block_size,
        "transport": config.transport.name,
        "fabric": config.fabric.name,
        "codec": config.transfer.codec.name,
        "num_rounds": config.num_rounds,
        "level": LEVEL,
        "made_at": datetime.now().isoformat(),
        "labels": environment.get("labels", []),
        "commit": environment.get("commit", ""),
    }
