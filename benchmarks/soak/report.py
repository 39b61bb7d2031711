"""What the soak found: one row per kind of fault, and the rules that it must not break."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.soak.legs import Leg
from benchmarks.soak.trial import Order, Outcome, RankReport, Strike, fault_file, read_outcomes, read_reports
from xpyd.faults import EXIT_RANKS_LOST, EXIT_REQUESTS_FAILED


@dataclass(frozen=True)
class JobResult:
    """What one job left in its folder. ``errors``: of ranks that were not to fail, such as a poisoned block."""

    order: Order
    exit_code: int
    outcomes: list[Outcome]
    reports: list[RankReport]
    errors: list[str]

    @classmethod
    def read(cls, order: Order, exit_code: int, folder: Path) -> JobResult:
        errors = [
            f"{path}: {path.read_text().strip().splitlines()[-1]}"
            for path in sorted(folder.glob("error.*"))
            if not fault_file(folder, int(path.suffix[1:])).exists()
        ]
        return cls(order, exit_code, read_outcomes(folder), read_reports(folder), errors)

    @property
    def strikes(self) -> list[Strike]:
        return [strike for outcome in self.outcomes for strike in outcome.strikes]

    @property
    def num_faults(self) -> int:
        """Of the kind that the job is for."""
        if self.order.fault == "abort":
            return sum(outcome.num_moving for outcome in self.outcomes)
        if self.order.fault == "exhaust":
            return sum(report.num_waits for report in self.reports)
        return len(self.strikes)

    @property
    def expected_code(self) -> int:
        return EXIT_REQUESTS_FAILED if self.order.fault in ("abort", "exhaust") else EXIT_RANKS_LOST


@dataclass
class Tally:
    """All jobs of a leg. ``skipped``: why there are none."""

    leg: Leg
    jobs: list[JobResult] = field(default_factory=list)
    skipped: str = ""

    @property
    def num_faults(self) -> int:
        return sum(job.num_faults for job in self.jobs)

    @property
    def noticed_s(self) -> list[float]:
        return [s.noticed_s for job in self.jobs for s in job.strikes if s.noticed_s is not None]

    def total(self, column: str) -> int:
        """The sum of one of the counts of every outcome."""
        return sum(getattr(outcome, column) for job in self.jobs for outcome in job.outcomes)

    def reports(self, column: str) -> int:
        """The sum of one of the counts of every rank that was left."""
        return sum(getattr(report, column) for job in self.jobs for report in job.reports)

    def broken(self, asked: int, bound_s: float) -> Iterator[str]:
        """Every rule that does not hold, in words."""
        if self.skipped:
            return
        if self.num_faults < asked:
            yield f"{self.num_faults} faults of {asked}"
        unnoticed = sum(strike.noticed_s is None for job in self.jobs for strike in job.strikes)
        if unnoticed:
            yield f"{unnoticed} faults not noticed"
        if max(self.noticed_s, default=0.0) > bound_s:
            yield f"noticed after {max(self.noticed_s):.2f} s, the bound is {bound_s} s"
        for column, what in (("num_unexplained", "without an end"), ("num_unnamed", "whose reason names no rank")):
            if self.total(column):
                yield f"{self.total(column)} requests {what}"
        for job in self.jobs:
            if job.exit_code != job.expected_code:
                yield f"a job (seed {job.order.seed}) ended with {job.exit_code}, not {job.expected_code}"
            yield from job.errors
            for outcome in job.outcomes:
                yield from (f"healthy {bystander}" for bystander in outcome.bystanders)


def table(tallies: Sequence[Tally]) -> Table:
    made = Table(title="Faults: what was dealt, and what became of the requests")
    columns = ("fault", "faults", "jobs", "noticed p50, max", "finished", "failed", "retried", "moving", "no end")
    for column in (*columns, "unnamed", "quarantined", "checked", "poison", "exit"):
        made.add_column(column, justify="left" if column == "fault" else "right")
    for tally in tallies:
        if tally.skipped:
            made.add_row(tally.leg.name, f"skipped: {tally.skipped}")
            continue
        noticed = f"{median(tally.noticed_s):.2f}, {max(tally.noticed_s):.2f} s" if tally.noticed_s else "-"
        counts = [tally.num_faults, len(tally.jobs)]
        ends = [tally.total(f"num_{name}") for name in ("finished", "failed", "retried", "moving", "unexplained")]
        poison = sum("poison" in error or "holds" in error for job in tally.jobs for error in job.errors)
        kept = [tally.total("num_unnamed"), tally.reports("num_quarantined"), tally.reports("num_checked"), poison]
        codes = " ".join(str(code) for code in sorted({job.exit_code for job in tally.jobs}))
        made.add_row(tally.leg.name, *map(str, counts), noticed, *map(str, ends), *map(str, kept), codes)
    return made


def show(tallies: Sequence[Tally], asked: int, bound_s: float) -> bool:
    """Print the table and every rule that does not hold; True where all do."""
    Console(width=170).print(table(tallies))
    broken = [f"{tally.leg.name}: {what}" for tally in tallies for what in tally.broken(asked, bound_s)]
    for line in broken:
        print(f"broken: {line}")
    return not broken
