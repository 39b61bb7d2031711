"""The command line that all analysis programs share: read runs, refuse what should not be read, print or write."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, cast

import pandas as pd

from analysis.load import Run, RunError, load_runs
from analysis.render import FORMATS, Format, print_terminal, render, terminal
from analysis.results import Results

PARQUET = "parquet"
USER_ERROR = 2
DEBUG = "XPYD_DEBUG"


def bare_parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """Without options yet."""
    return argparse.ArgumentParser(
        prog=f"python -m analysis.{program}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parser(program: str, description: str) -> argparse.ArgumentParser:
    """The options that every program has."""
    made = bare_parser(program, description)
    made.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder; repeats of one trial are pooled")
    formats = "how to print (default: terminal); csv and parquet hold numbers in tidy rows, the others tables"
    made.add_argument("--format", choices=(*FORMATS, PARQUET), default="terminal", help=formats)
    made.add_argument("--out", type=Path, metavar="FILE", help="write to FILE instead of the terminal")
    made.add_argument("--allow-partial", action="store_true", help="read runs without DONE: stopped or still running")
    made.add_argument("--allow-mixed", action="store_true", help="read runs of different configurations, a table each")
    return made


def main(
    made: argparse.ArgumentParser,
    experiments: Sequence[str],
    analyse: Callable[[Run, argparse.Namespace], Results],
    summarise: Callable[[Sequence[Run], Sequence[Results]], Results] | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Analyse the runs named on the command line. ``summarise`` adds one result over runs that differ.

    Returns the exit code: 2, with one line that says what to do, for input that cannot be read as asked.
    """
    options = made.parse_args(argv)
    try:
        runs = load_runs(options.runs, options.allow_partial, options.allow_mixed)
        for run in runs:
            check_experiment(run, experiments)
        results = [told(run, lambda run: analyse(run, options)) for run in runs]
        if summarise is not None and len(runs) > 1 and options.format not in ("csv", PARQUET):
            results.append(summarise(runs, results))
        write(results, options)
    except (RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


Found = TypeVar("Found")


def told(run: Run, analyse: Callable[[Run], Found]) -> Found:
    """``analyse(run)``, with one line for a run whose files do not fit together. Raises RunError.

    In a whole folder that is a fault of ours: ``XPYD_DEBUG=1`` shows where.
    """
    try:
        return analyse(run)
    except RunError:
        raise
    except Exception as error:
        if os.environ.get(DEBUG) == "1":
            raise
        raise RunError(
            f"{run.paths[0]}: its files do not fit together ({type(error).__name__}: {error}); restore what was "
            f"changed or lost, or measure again. If nothing was, this is a fault of xpyd: {DEBUG}=1 shows where"
        ) from None


def check_experiment(run: Run, experiments: Sequence[str]) -> None:
    if run.experiment not in experiments:
        raise RunError(
            f"{run.paths[0]}: a run of experiment {run.experiment!r}; this program reads {', '.join(experiments)}. "
            f"Use python -m analysis.{run.experiment}, or python -m analysis.report, which reads every kind"
        )


def write(results: Sequence[Results], options: argparse.Namespace) -> None:
    """Print or write ``results`` as the options say. Raises RunError for Parquet without a file to write it to."""
    if options.format == PARQUET:
        if options.out is None:
            raise RunError("--format parquet is not for a terminal; name a file with --out")
        pd.concat([result.frame for result in results], ignore_index=True).to_parquet(options.out, index=False)
        print(options.out)
        return
    fmt = cast(Format, options.format)
    if options.out is not None:
        options.out.write_text(render(results, fmt))
        print(options.out)
    elif fmt == "terminal":
        console = terminal()
        for result in results:
            print_terminal(result, console)
    else:
        sys.stdout.write(render(results, fmt))
