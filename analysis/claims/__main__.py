"""Judge the field's claims by runs that are there already; nothing is measured.

python -m analysis.claims runs/claims/20260101-120000-000000
python -m analysis.claims runs/interference/R1 runs/compare/R2 --only prefill_burst ttft --out claims
python -m analysis.claims --list

Writes claims.json, claims.parquet and claims.html: into the folder of a claims run, or where --out says. The exit code
is 1 where nothing could be measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from analysis import command
from analysis.claims import show
from analysis.claims.claim import Claim
from analysis.claims.evaluate import Outcome, evaluate, readable
from analysis.claims.folders import Given, is_claims_run, read
from analysis.claims.registry import all_claims, chosen, plan
from analysis.load import RunError
from analysis.render import print_terminal
from analysis.results import Results, Table

NOTHING_MEASURED = 1
WIDTH = 150


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    known = all_claims()
    try:
        if options.plan:
            print(json.dumps(plan(chosen(options.only, known), options.quick)))
            return 0
        if options.list:
            print_terminal(listed(chosen(options.only, known)), wide_console())
            return 0
        if not options.folders:
            raise RunError("no run folder is given; name one, or look at --list")
        return judge_folders(options, known)
    except (RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return command.USER_ERROR


def judge_folders(options: argparse.Namespace, known: Sequence[Claim]) -> int:
    """Read, judge, print, write. Raises RunError."""
    given = read(options.folders, known, options.allow_partial)
    claims = wanted(options.only, given, known, any(is_claims_run(folder) for folder in options.folders))
    outcomes = evaluate(claims, given.runs)
    folder = options.folders[0]
    name = f"{folder.resolve().parent.name}/{folder.resolve().name}"
    found = show.results(name, outcomes)
    print_terminal(found, wide_console())
    out = options.out or (folder if is_claims_run(folder) else None)
    if out is not None:
        write(out, name, found, outcomes, given)
        print(out / "claims.html")
    if not any(outcome.measured for outcome in outcomes):
        print("error: nothing could be measured; the reasons are above", file=sys.stderr)
        return NOTHING_MEASURED
    return 0


def wanted(only: Sequence[str], given: Given, known: Sequence[Claim], whole: bool) -> list[Claim]:
    """The claims to judge: those named here, those of the claims run (``whole``), else all that the runs speak of."""
    if only or whole:
        return chosen(only or given.only, known)
    return readable(known, given.runs)


def write(out: Path, name: str, found: Results, outcomes: Sequence[Outcome], given: Given) -> None:
    """The three files."""
    from analysis.claims.page import page  # draws: only where there is somewhere to put it

    out.mkdir(parents=True, exist_ok=True)
    folders = {measurement: ", ".join(map(str, run.paths)) for measurement, run in given.runs.items()}
    (out / "claims.json").write_text(json.dumps({"claims": show.as_json(outcomes)}, indent=1) + "\n")
    found.frame.to_parquet(out / "claims.parquet", index=False)
    (out / "claims.html").write_text(page(name, outcomes, {**_facts(given), **folders}))


def listed(claims: Sequence[Claim]) -> Results:
    """Every claim with what it says, where it is from, and what it needs."""
    rows = [
        (claim.name, claim.statement, claim.source, ", ".join(each.name for each in claim.needs)) for claim in claims
    ]
    table = Table("Claims", ("claim", "statement", "source", "needs"), rows, num_left=4)
    return Results("claims", "claims", f"{len(claims)} claims.", "", [table], show.tidy([]))


def wide_console() -> Console:
    """As wide as the terminal; into a file or a pipe wide enough for the table."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, WIDTH))


def _facts(given: Given) -> dict[str, str]:
    """Where and on what the runs were made."""
    environments = [run.environment for run in given.runs.values()]
    hosts = dict.fromkeys(host for each in environments for host in each.get("hosts", []))
    commits = dict.fromkeys(str(each.get("commit", ""))[:12] for each in environments)
    started = sorted(str(each["started_at"]) for each in environments if "started_at" in each)
    found = {"hosts": ", ".join(hosts), "commit": ", ".join(filter(None, commits)), "started": (started or [""])[0]}
    return {key: value for key, value in found.items() if value}


def _parser() -> argparse.ArgumentParser:
    made = command.bare_parser("claims", __doc__)
    made.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="a claims run, or runs of experiments")
    made.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these claims alone")
    made.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where the files go (default: the claims run's folder)"
    )
    made.add_argument("--allow-partial", action="store_true", help="read also measurements that were stopped")
    made.add_argument("--list", action="store_true", help="name the claims, their sources and what they need")
    made.add_argument("--plan", action="store_true", help="what experiments.claims would run, as JSON")
    made.add_argument("--quick", action="store_true", help="with --plan: of a quick pass")
    return made


if __name__ == "__main__":
    sys.exit(main())
