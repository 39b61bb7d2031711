"""Hostile configurations, traces, checkpoints, hosts and run folders: each is taken, or refused in one line.

make fuzz                                            ten thousand of each
python -m tests.fuzz --only traces --inputs 100000
python -m tests.fuzz --only configs --seed 4711      one input again, with its traceback

Never a bare traceback, never a crash, never a hang, and no run folder changed. A finding gives exit code 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from tests.fuzz.drive import Tally, drive
from tests.fuzz.targets import TARGETS


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    begin = time.monotonic()
    first, num_inputs = (0, options.inputs) if options.seed is None else (options.seed, 1)
    tallies = [drive(name, first, num_inputs, _say) for name in options.only or TARGETS]
    for tally in tallies:
        print(_row(tally))
        for finding in tally.findings[: options.show]:
            print(f"\n{finding.target}, seed {finding.seed}:\n{finding.what}")
    print(f"{sum(tally.num_inputs for tally in tallies)} inputs in {time.monotonic() - begin:.0f} s")
    return int(any(tally.findings for tally in tallies))


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--only", nargs="+", choices=TARGETS, metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    made.add_argument("--inputs", type=int, default=10_000, help="of each target (default: 10000)")
    made.add_argument("--seed", type=int, help="this one input alone")
    made.add_argument("--show", type=int, default=5, help="findings to show of each target (default: 5)")
    return made


def _row(tally: Tally) -> str:
    counts = f"{tally.num_taken} taken, {tally.num_refused} refused, {len(tally.findings)} findings"
    return f"{tally.target:<12} {tally.num_inputs} inputs: {counts}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
