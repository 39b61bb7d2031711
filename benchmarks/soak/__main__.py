"""Each kind of fault a hundred times, in real sessions with real transports: is it noticed, named, and undone?

make soak                                              every kind, about half an hour on 2 cores
python -m benchmarks.soak --only kill-prefill --num 20
python -m benchmarks.soak --seed 7                     other moments

The workers, transports and messages are those of a run; only the model is a stand-in, whose KV is a known pattern: a
freed block is overwritten with poison in that moment, and every decode step compares all blocks of all requests. The
exit code is 1 where a rule is broken: see the end of the output. Needs Open MPI 5 (ULFM); links also root or user
namespaces.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from benchmarks.soak.legs import LEGS, Leg
from benchmarks.soak.report import JobResult, Tally, show
from benchmarks.soak.start import run_job
from launch.virtual_cluster.temporary import cluster_refusal
from xpyd.streams import FOLDER

BOUND_S = 5.0  # of the issue: noticed within


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # jobs are ended, results are shown
    folder = options.out or Path("runs/soak") / datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    folder.mkdir(parents=True)
    legs = [leg for leg in LEGS if not options.only or leg.key in options.only]
    tallies: list[Tally] = []
    try:
        for leg in legs:
            tallies.append(Tally(leg, skipped=_refusal(leg)))
            if not tallies[-1].skipped:
                _play(tallies[-1], options.num, options.detect, options.seed, folder)
    except KeyboardInterrupt:
        _say("interrupted; this is what there is")
    whole = show(tallies, options.num, BOUND_S)
    print(f"results: {folder}")
    return 0 if whole and len(tallies) == len(legs) else 1


def _play(tally: Tally, asked: int, detect_s: float, seed: int, folder: Path) -> None:
    """Job after job until there are as many faults as were asked for; each result is on disk at once."""
    max_jobs = 2 + asked // 4
    for number, order in enumerate(tally.leg.orders(detect_s, seed)):
        if tally.num_faults >= asked or number == max_jobs:
            return
        mine = folder / f"{tally.leg.key}-{number}"
        result = JobResult.read(order, run_job(order, mine), mine)
        tally.jobs.append(result)
        with (folder / "results.jsonl").open("a") as file:
            file.write(json.dumps({"leg": tally.leg.key, **asdict(result)}) + "\n")
        retried, failed = tally.total("num_retried"), tally.total("num_failed")
        what = f"{order.transport} {order.mode} {order.direction} {order.policy}, exit code {result.exit_code}"
        _say(f"{tally.leg.name}: {tally.num_faults}/{asked} ({retried} retried, {failed} failed); {what}")
        if result.exit_code == result.expected_code and not result.errors:
            shutil.rmtree(mine / FOLDER)  # rows of a job that went well


def _refusal(leg: Leg) -> str:
    """Why this leg cannot be played here, empty where it can."""
    return (cluster_refusal() or "") if leg.fault == "cut" else ""


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    keys = [leg.key for leg in LEGS]
    made.add_argument("--only", nargs="+", choices=keys, metavar="KIND", help=f"kinds of fault: {', '.join(keys)}")
    made.add_argument("--num", type=int, default=100, help="faults of each kind (default: 100)")
    made.add_argument("--detect", type=float, default=1.5, help="faults.detect_s of the jobs (default: 1.5)")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, help="a new folder for results (default: runs/soak/...)")
    return made


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
