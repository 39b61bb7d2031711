"""The wire alone, beside its limits, in one run: who moves KV how fast over shared memory, loopback and a veth pair.

make bench-transfer                                   everything, under 8 minutes
python -m benchmarks.transfer --quick                 one pair, fewer cases and repeats, under 2 minutes
python -m benchmarks.transfer --only veth-10gbit --carriers socket,ucx

On a machine that others use, run it with nice -n -10: transports poll, and a core lent to somebody else counts as slow.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from benchmarks.tables import print_tables, write_csv
from benchmarks.transfer import paths
from benchmarks.transfer.order import Missing, Order, Sample, read_samples
from benchmarks.transfer.paths import WIRES, Wire
from benchmarks.transfer.ratios import Row, Samples, Target, targets
from benchmarks.transfer.report import draw, path_table, targets_table, write_json
from launch.virtual_cluster.cluster import Cluster
from launch.virtual_cluster.temporary import cluster_refusal, temporary_cluster
from xpyd.units import MIB

START_S = 6.0  # ranks, carriers and their check, per set of ranks
PAIR_SHARE = 0.75  # of a path's time goes to one pair, the rest to 2 x 2
QUICK_DIVISOR = 4
MIN_REPEATS = 3
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Leg:
    """One path with one number of sides."""

    wire: Wire
    num_sides: int
    seconds: float


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    wires = [wire for wire in WIRES if not options.only or wire.name in options.only]
    if reason := cluster_refusal():
        for wire in wires:
            if wire.rate is not None:
                _say(f"left out: {wire.name}: {reason}")
        wires = [wire for wire in wires if wire.rate is None]
    folder = options.out or Path("runs/bench-transfer") / datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    folder.mkdir(parents=True)
    sides = options.sides or ([1] if options.quick else [1, 2])
    legs = list(_legs(wires, sides, options.minutes or (1.6 if options.quick else 7.2)))
    found = _measure(legs, folder, options.quick, tuple(options.carriers.split(",")) if options.carriers else ())
    _report(legs, found, folder)
    return 0


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.transfer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [wire.name for wire in WIRES]
    made.add_argument("--only", nargs="+", choices=names, metavar="PATH", help=f"paths to measure: {', '.join(names)}")
    sides = "1: a pair, 2: 2 x 2 ranks (default: both; 1 with --quick)"
    made.add_argument("--sides", nargs="+", type=int, choices=(1, 2), help=sides)
    made.add_argument("--carriers", help="only these, such as socket,ucx_perftest,ucx,mpi,nixl")
    made.add_argument("--quick", action="store_true", help="one pair, fewer cases, smaller requests")
    made.add_argument("--minutes", type=float, help="time for all paths together (default: 7.2; 1.6 with --quick)")
    made.add_argument("--out", type=Path, help="a new folder for samples, CSV, JSON and the plot (default: runs/...)")
    return made


def _legs(wires: Sequence[Wire], sides: Sequence[int], minutes: float) -> Iterator[Leg]:
    """Every path with every number of sides, with its share of the time."""
    share = {1: PAIR_SHARE, 2: 1 - PAIR_SHARE}
    total = len(wires) * sum(share[n] for n in sides)
    left_s = max(minutes * 60 - START_S * len(wires) * len(sides), 0)
    for wire in wires:
        for num_sides in sides:
            yield Leg(wire, num_sides, left_s * share[num_sides] / total)


def _measure(legs: Sequence[Leg], folder: Path, quick: bool, carriers: tuple[str, ...]) -> list[Sample | Missing]:
    """Run leg after leg; what is measured is on disk at once."""
    found: list[Sample | Missing] = []
    with ExitStack() as stack:
        cluster = stack.enter_context(temporary_cluster(2)) if any(leg.wire.rate is not None for leg in legs) else None
        for index, leg in enumerate(legs):
            left_s = sum(later.seconds + START_S for later in legs[index:])
            _say(f"[{index + 1}/{len(legs)}] {_title(leg)}; about {left_s / 60:.1f} min left")
            if cluster is not None and leg.wire.rate is not None:
                paths.shape(cluster, leg.wire.rate)
            found += _run(leg, cluster, folder, quick, carriers)
    return found


def _run(
    leg: Leg, cluster: Cluster | None, folder: Path, quick: bool, carriers: tuple[str, ...]
) -> list[Sample | Missing]:
    stem = folder.absolute() / f"{leg.wire.name}-{leg.num_sides}x{leg.num_sides}"
    fabric = leg.wire.fabric_settings()
    order = Order(
        path=leg.wire.name,
        host=paths.destination_host(leg.wire, cluster),
        num_sides=leg.num_sides,
        layers_bytes=leg.wire.layers_mib * MIB // (QUICK_DIVISOR if quick else 1),
        tls=tuple(fabric["tls"]),
        device=leg.wire.device,
        ucx=fabric["ucx"],
        message_bytes=fabric["message_bytes"],
        seconds=leg.seconds,
        min_repeats=MIN_REPEATS,
        quick=quick,
        carriers=carriers,
        samples=f"{stem}.jsonl",
    )
    order.save(stem.with_suffix(".order.json"))
    command = paths.ranks_command(leg.wire, cluster, leg.num_sides, stem.with_suffix(".order.json"))
    environment = {**os.environ, "PYTHONPATH": str(paths.ROOT), "OMP_NUM_THREADS": "1"}
    with open(f"{stem}.log", "w") as log:
        begin = time.monotonic()
        pipes = {"stdout": log, "stderr": subprocess.PIPE}
        ranks = subprocess.Popen(command, cwd=paths.ROOT, env=environment, text=True, **pipes)  # type: ignore[call-overload]
        assert ranks.stderr is not None
        try:
            for line in ranks.stderr:
                log.write(line)
                if line.startswith("  "):  # rank 0's progress
                    _say(line.rstrip())
            code = ranks.wait(TIMEOUT_S)
        finally:
            ranks.kill()
            ranks.wait()
    if code:
        _say(f"warning: {_title(leg)} ended with exit code {code}, see {stem}.log")
    _say(f"  {time.monotonic() - begin:.0f} s")
    return list(read_samples(Path(order.samples)))


def _report(legs: Sequence[Leg], found: Sequence[Sample | Missing], folder: Path) -> None:
    samples = Samples([sample for sample in found if isinstance(sample, Sample)])
    missing = [row for row in found if isinstance(row, Missing)]
    labels = paths.labels([leg.wire for leg in legs])
    rows: list[Row] = samples.rows()
    reached: dict[str, Sequence[Target]] = {
        leg.wire.name: targets(samples, leg.wire.name, leg.wire.shaped) for leg in legs if leg.num_sides == 1
    }
    tables = []
    for leg in legs:
        key = leg.wire.name, f"{leg.num_sides}x{leg.num_sides}"
        mine = [row for row in rows if (row.path, row.pairs) == key]
        left_out = [row for row in missing if (row.path, row.pairs) == key]
        tables.append(path_table(*key, mine, left_out, paths.labels([leg.wire])))
    print_tables([*tables, targets_table(reached, labels)])
    write_csv(rows, Row, folder / "rows.csv")
    write_json(rows, reached, labels, folder / "results.json")
    if rows:
        draw(samples, rows, labels, folder / "transfer.png")
    print(f"results: {folder}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _title(leg: Leg) -> str:
    return f"{leg.wire.name}, {leg.num_sides}x{leg.num_sides} ranks"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
