"""The ``tune`` experiment: search UCX options on the user's own wire, and write what wins as a fabric preset."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import yaml

from xpyd.clock import wait_quietly
from xpyd.config.wire import Tune
from xpyd.entry import Job
from xpyd.placement import CLIENT_RANK, Role, node_names, place
from xpyd.run_dir import RowWriter
from xpyd.transport.fabric import FabricConfig
from xpyd.trial import write_environment
from xpyd.worker.affinity import pin_cores
from xpyd.worker.contest import Contest, Heat
from xpyd.worker.links import Links
from xpyd.worker.search import FINAL, REFERENCE, START, TUNED, UCX_DEFAULTS, Settings, contenders, ratios, winner

PRESET = "tuned"


@dataclass(frozen=True)
class Adopted:
    """An option that won its axis, and by how much."""

    axis: str
    option: str
    gain: float  # median ratio to the best before it


def run_tune(config: Tune, job: Job) -> None:
    """Search between the first prefill and the first decode rank; collective. Rank 0 writes ``fabric/tuned.yaml``."""
    comm = job.comm
    placement = place(config.placement, node_names(comm))
    cores = pin_cores(comm, config.placement.pin_cores)
    buffer = np.zeros(config.search.payload_bytes, np.uint8) if comm.rank != CLIENT_RANK else None
    links = Links(config.transport, config.fabric, comm, placement, buffer)  # the errors of a run, before the search
    write_environment(job, placement, cores.mine, links.routes, config.fabric.emulated)
    links.close()
    source, destination = placement.ranks(Role.PREFILL)[0], placement.ranks(Role.DECODE)[0]
    job.say(f"rank {source} -> rank {destination} over {links.routes[f'{source}->{destination}']}")
    with RowWriter(job.run_dir, comm.rank) as rows:
        contest = None
        if comm.rank in (source, destination):
            assert buffer is not None
            ends = comm, source, destination, buffer
            contest = Contest(config.transport, config.fabric, config.search, *ends, rows.write)
        best, adopted = _search(config, job, contest, destination)
        gain = _final(config, job, contest, destination, best)
        rows.flush()
    if gain < 1:  # what won its axis by chance: keep what the search began with
        best, adopted, gain = _start(config), [], 1.0
    if comm.rank == CLIENT_RANK:
        _write_preset(config.fabric, best, adopted, gain, job)


def _search(config: Tune, job: Job, contest: Contest | None, decider: int) -> tuple[Settings, list[Adopted]]:
    """One axis after the other; every rank returns the same."""
    search = config.search
    best = _start(config)
    adopted: list[Adopted] = []
    begin = time.monotonic()
    done = 0
    for number, (axis, options) in enumerate(search.axes.items()):
        heat = Heat(number, axis, contenders(best, options), search.num_repeats)
        left = f", about {_minutes_left(begin, done, search.num_measurements)} min left" if done else ""
        job.say(f"axis {number + 1}/{len(search.axes)} {axis}: {', '.join(list(heat.contenders)[1:])}{left}")
        name, gain = _hold(job.comm, contest, heat, decider, search.min_gain)
        done += (len(options) + 1) * search.num_repeats * len(search.piece_bytes)
        if name != REFERENCE:
            adopted.append(Adopted(axis, name, gain))
            best = heat.contenders[name]
        job.say(f"  {name}" if name == REFERENCE else f"  {name}: {gain:.2f} times as fast, adopted")
    return best, adopted


def _hold(comm: Any, contest: Contest | None, heat: Heat, decider: int, min_gain: float) -> tuple[str, float]:
    """The winner of a round and its median ratio to the reference, decided by the destination; collective."""
    verdict = None
    if contest is not None:
        timed = contest.hold(heat)
        if comm.rank == decider:
            name = winner(timed, min_gain)
            verdict = name, float(np.median(ratios(timed[name], timed[REFERENCE])))
    wait_quietly(comm)
    found: tuple[str, float] = comm.bcast(verdict, root=decider)
    return found


def _final(config: Tune, job: Job, contest: Contest | None, decider: int, best: Settings) -> float:
    """What was found against what the search began with and UCX's defaults; the median ratio to the begin."""
    entries = {START: _start(config), TUNED: best, UCX_DEFAULTS: {}}
    search = config.search
    job.say(f"final round: {', '.join(entries)}, {search.num_final_repeats} repeats")
    gain = None
    if contest is not None:
        timed = contest.hold(Heat(len(search.axes), FINAL, entries, search.num_final_repeats))
        if job.comm.rank == decider:
            gain = float(np.median(ratios(timed[TUNED], timed[START])))
    wait_quietly(job.comm)
    return float(job.comm.bcast(gain, root=decider))


def _start(config: Tune) -> Settings:
    """What the search begins with."""
    return config.fabric.options


def _write_preset(fabric: FabricConfig, best: Settings, adopted: list[Adopted], gain: float, job: Job) -> None:
    folder = job.run_dir.path / "fabric"
    folder.mkdir()
    path = folder / f"{PRESET}.yaml"
    path.write_text(preset_text(fabric, best, adopted, gain))
    job.say(
        f"tuned: {gain:.2f} times as fast as fabric={fabric.name}; preset {path}\n"
        f"use it: --config-dir {job.run_dir.path} fabric={PRESET}, or copy it to conf/fabric/NAME.yaml"
    )


def preset_text(fabric: FabricConfig, best: Settings, adopted: list[Adopted], gain: float) -> str:
    """The YAML of a fabric with the settings found; it says where it comes from."""
    won = ", ".join(f"{each.axis}={each.option} ({each.gain:.2f})" for each in adopted) or "nothing beat the begin"
    values = {
        "name": PRESET,
        "rate_gbps": fabric.rate_gbps,
        "tls": list(fabric.tls),
        "net_devices": list(fabric.net_devices),
        "ucx": best,
        "message_bytes": fabric.message_bytes,
        "strict": fabric.strict,
        "emulated": fabric.emulated,
    }
    found = f"{datetime.now():%Y-%m-%d}, {gain:.2f} times as fast as fabric={fabric.name}, from which it started"
    comment = f"# Found by experiments.tune on {found}.\n# Won, with the ratio to the best before it: {won}.\n"
    return comment + yaml.safe_dump(values, sort_keys=False, default_flow_style=None)


def _minutes_left(begin: float, done: int, total: int) -> str:
    return f"{(time.monotonic() - begin) / done * (total - done) / 60:.1f}"
