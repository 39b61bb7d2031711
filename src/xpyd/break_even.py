"""The ``break_even`` experiment: a map of where splitting pays, in simulated time, frozen to a file for measuring.

Every cell is played in both arms on the same requests, ``num_pairs`` times. Cells are written as they come: a run that
was stopped keeps them and, with ``run.resume=true``, goes on behind them. The last thing written is ``prediction.json``
(``economics.frozen``): the class and figures of every cell, and what they hold for. ``analysis.held_out`` holds real
runs against it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, astuple, replace
from math import exp
from statistics import fmean
from typing import Any

from xpyd.compose import ROOT
from xpyd.config.load import dump_config
from xpyd.config.modeled import BreakEven
from xpyd.economics.break_even import Cell, Judged, judge
from xpyd.economics.cost import LinkModel
from xpyd.economics.drift import Drift, drift_of
from xpyd.economics.frozen import HASH, sealed
from xpyd.economics.ledger import ArmTimes, make_ledger
from xpyd.economics.moving import UNKNOWN
from xpyd.economics.ranges import Modeled, arm_range, ratio_range
from xpyd.entry import Job
from xpyd.environment import lone_environment
from xpyd.placement import PlacementConfig
from xpyd.records import COLOCATED, DISAGGREGATED, BreakEvenRow
from xpyd.run_dir import RowWriter, RunDir
from xpyd.simulate.account import Account
from xpyd.simulate.cluster import Cluster
from xpyd.simulate.costs import PS_PER_S
from xpyd.simulate.figures import BlockFigures, StampSink
from xpyd.simulate.model import Costs
from xpyd.simulation import costs_of, on_link, origin, setup_of
from xpyd.streams import merge
from xpyd.units import format_s, gbps_to_bytes_per_s

PREDICTION = "prediction.json"
# Who says what a block takes. The last three are what people reckon with instead, for comparison.
SIMULATOR, NOMINAL, FREE, UNDISTURBED = "simulator", "bytes over bandwidth", "free transfer", "no interference"
# The simulator at both ends of how fast the machine may be in a run, going by how it drifts between calibrations.
FAST, SLOW = "simulator, fast", "simulator, slow"
RATIO = "split over colocated"  # per pair
NO_TIME = LinkModel(0.0, 0.0, 1e18)
STAGES = tuple(ArmTimes.__dataclass_fields__)
FIGURES = ("ttft_p50_s", "ttft_p99_s", "itl_p50_s", "itl_p99_s", "goodput_rps")
# Of the frozen configuration, what a held-out run must agree in. The axes, and how many pairs, are its own.
TRANSFER_KEYS = ("mode", "direction", "first_token", "max_piece_bytes", "staging", "codec")
PLACEMENT_KEYS = ("num_prefill", "num_decode", "prefill_tp", "decode_tp", "colocated_tp")


def run_break_even(config: BreakEven, job: Job) -> None:
    """Play every cell, write its rows, and freeze the map; in the calling process."""
    cells = [Cell(*point) for point in config.break_even.points()]
    costs = costs_of(config)
    job.run_dir.write_json("environment.json", {**lone_environment(ROOT, []), "labels": ["modeled", costs.label]})
    rows = _resumed(config, job.run_dir)
    known = {cell_of(row) for row in rows}
    if known:
        job.say(f"resumed, attempt {job.run_dir.attempt}: {len(known)} of {len(cells)} cells are played")
    todo, begin_s = [cell for cell in cells if cell not in known], time.monotonic()
    player = _Player(config, costs)
    with RowWriter(job.run_dir, rank=0) as writer:
        for row in rows:  # of tables without blocks the last attempt counts alone
            writer.write(row)
        writer.flush()
        for number, cell in enumerate(todo):
            own = player.play(cell)
            for row in own:
                writer.write(row)
            writer.flush()
            rows += own
            left_s = (time.monotonic() - begin_s) / (number + 1) * (len(todo) - number - 1)
            words = f"{cell.name}: {_words(judged(config, own))}, about {left_s:.0f} s left"
            job.say(f"{len(known) + number + 1}/{len(cells)} {words}")
    content = sealed(prediction(config, rows, costs))
    job.run_dir.write_json(PREDICTION, content)
    job.say(f"frozen: {job.run_dir.path / PREDICTION}, sha256 {content[HASH][:12]}")


def prediction(config: BreakEven, rows: Sequence[BreakEvenRow], costs: Costs) -> dict[str, Any]:
    """The map as plain JSON: what it holds for, and class and figures of every cell."""
    by_cell: dict[Cell, list[BreakEvenRow]] = {}
    for row in rows:
        by_cell.setdefault(cell_of(row), []).append(row)
    drift = drift_of(costs.slowness, config.num_pairs)
    return {
        **origin(config, costs),
        "source": "modeled",
        "criterion": config.break_even.criterion,
        "band": config.break_even.band,
        "num_pairs": config.num_pairs,
        "conditions": conditions(config),
        "drift": None if drift is None else asdict(drift),
        "cells": [
            {**asdict(cell), **_frozen(judged(config, own)), "figures": _figures(own), "ranges": _ranges(own, drift)}
            for cell, own in sorted(by_cell.items())
        ],
    }


def conditions(config: BreakEven) -> dict[str, Any]:
    """The settings that a measured run must share, as a run folder's configuration has them."""
    dumped = dump_config(config)
    arrival = {key: value for key, value in dumped["workload"]["arrival"].items() if key != "rate_rps"}
    return {
        "model": dumped["model"],
        "placement": {key: dumped["placement"][key] for key in PLACEMENT_KEYS},
        "scheduler": dumped["scheduler"],
        "transfer": {key: dumped["transfer"][key] for key in TRANSFER_KEYS},
        "router": dumped["router"],
        "speculation": {"draft": "none"},  # is not simulated
        "slo": dumped["slo"],
        "workload": {"num_requests": dumped["workload"]["num_requests"], "arrival": arrival},
    }


def cell_of(row: BreakEvenRow) -> Cell:
    """The cell that a row is of."""
    return Cell(row.output_len, row.rate_rps, row.input_len, row.link_gbps)


class _Player:
    """Plays cells. A colocated block knows no link: it is played once for all links, as they follow each other."""

    def __init__(self, config: BreakEven, costs: Costs) -> None:
        self._config = config
        self._costs = costs
        together = config.placement.colocated()
        num, width = together.num_colocated, together.colocated_tp or 1
        twins = PlacementConfig(num_prefill=num, num_decode=num, prefill_tp=width, decode_tp=width)
        self._twins = replace(config, placement=twins)
        self._stays: dict[tuple[int, str], BlockFigures] = {}
        self._stays_of: tuple[float, ...] = ()

    def play(self, cell: Cell) -> list[BreakEvenRow]:
        if (load := (cell.output_len, cell.rate_rps, cell.input_len)) != self._stays_of:
            self._stays, self._stays_of = {}, load
        return [
            BreakEvenRow(
                **asdict(cell),
                predictor=predictor,
                pair=pair,
                arm=arm,
                **asdict(found.times),
                **{name: getattr(found, name) for name in FIGURES},
            )
            for pair in range(self._config.num_pairs)
            for predictor, arms in self._pair(cell, pair).items()
            for arm, found in zip((COLOCATED, DISAGGREGATED), arms, strict=True)
        ]

    def _pair(self, cell: Cell, pair: int) -> dict[str, tuple[BlockFigures, BlockFigures]]:
        """(colocated, disaggregated) as each predictor has them."""
        costs = on_link(self._config, self._costs, cell.link_gbps)
        stays, moves = self._stay(cell, pair, costs), self._move(cell, pair, costs)
        found = {SIMULATOR: (stays, moves)}
        if (drift := drift_of(costs.slowness, self._config.num_pairs)) is not None:
            for name, sign in ((FAST, -1), (SLOW, 1)):
                other = costs.slower(exp(sign * drift.off))
                found[name] = self._stay(cell, pair, other, name), self._move(cell, pair, other)
        if self._config.break_even.naive:
            nominal = LinkModel(0.0, 0.0, gbps_to_bytes_per_s(cell.link_gbps))
            found[NOMINAL] = stays, self._move(cell, pair, replace(self._costs, link=nominal, moving=UNKNOWN))
            free = replace(self._costs, link=NO_TIME, moving=UNKNOWN)
            found[FREE] = stays, self._move(cell, pair, free)
            found[UNDISTURBED] = self._stay(cell, pair, free, UNDISTURBED), moves
        return found

    def _move(self, cell: Cell, pair: int, costs: Costs) -> BlockFigures:
        return self._block(self._config, DISAGGREGATED, costs, cell, pair)

    def _stay(self, cell: Cell, pair: int, costs: Costs, predictor: str = SIMULATOR) -> BlockFigures:
        """``UNDISTURBED``: as if every rank had a twin that decodes for it, and KV moved to it in no time."""
        if (key := (pair, predictor)) not in self._stays:
            undisturbed = predictor == UNDISTURBED
            config, arm = (self._twins, DISAGGREGATED) if undisturbed else (self._config, COLOCATED)
            self._stays[key] = self._block(config, arm, costs, cell, pair)
        return self._stays[key]

    @staticmethod
    def _block(config: BreakEven, arm: str, costs: Costs, cell: Cell, pair: int) -> BlockFigures:
        sink = StampSink()
        account = Account(0, config.slo, sink, False, 0)
        requests = config.workload_at(*astuple(cell)[:3]).build(pair)
        end_ps = Cluster(setup_of(config, arm, costs, pair), account, lambda _: True).play(iter(requests))
        return sink.figures(account.totals.num_met, end_ps / PS_PER_S)


def _resumed(config: BreakEven, run_dir: RunDir) -> list[BreakEvenRow]:
    """The rows of the cells that earlier attempts have played."""
    if not run_dir.attempt:
        return []
    return [BreakEvenRow(**row) for row in merge(run_dir.path, "break_even").to_pylist()]


def judged(config: BreakEven, rows: Sequence[BreakEvenRow]) -> Judged:
    """The class of a cell, from its rows."""
    times = {
        (row.pair, row.arm): ArmTimes(*(getattr(row, name) for name in STAGES))
        for row in rows
        if row.predictor == SIMULATOR
    }
    ledgers = [make_ledger(times[pair, COLOCATED], times[pair, DISAGGREGATED]) for pair in range(config.num_pairs)]
    return judge(ledgers, config.break_even.criterion, config.break_even.band)


def _frozen(found: Judged) -> dict[str, Any]:
    return {**asdict(found), "saved": asdict(found.saved)}


def _figures(rows: Sequence[BreakEvenRow]) -> dict[str, dict[str, dict[str, float]]]:
    """predictor -> arm -> figure, means over pairs."""
    grouped: dict[tuple[str, str], list[BreakEvenRow]] = {}
    for row in rows:
        grouped.setdefault((row.predictor, row.arm), []).append(row)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (predictor, arm), own in grouped.items():
        found.setdefault(predictor, {})[arm] = {name: fmean(getattr(row, name) for row in own) for name in FIGURES}
    return found


def _ranges(rows: Sequence[BreakEvenRow], drift: Drift | None) -> dict[str, dict[str, tuple[float, float]]]:
    """arm, or RATIO of both -> figure -> its 95 % interval; empty where no drift of the machine is known."""
    if drift is None:
        return {}
    found: dict[str, dict[str, tuple[float, float]]] = {}
    means = _figures(rows)
    for name in FIGURES:
        arms = {}
        for arm in (COLOCATED, DISAGGREGATED):
            blocks = [getattr(row, name) for row in rows if (row.predictor, row.arm) == (SIMULATOR, arm)]
            arms[arm] = Modeled(blocks, *(means[predictor][arm][name] for predictor in (SIMULATOR, FAST, SLOW)))
            found.setdefault(arm, {})[name] = arm_range(arms[arm])
        found.setdefault(RATIO, {})[name] = ratio_range(arms[DISAGGREGATED], arms[COLOCATED], drift)
    return found


def _words(found: Judged) -> str:
    return f"{found.answer} ({format_s(found.saved.mid)} saved per request)"
