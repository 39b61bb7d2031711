"""Claims applied to runs: each part measured or the reason why not, and judged by the rule of ``claim``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.claims.claim import Claim, Judgement, Measured, Modeled, NoValue, Part, Unmeasurable, combine, judge
from analysis.claims.folders import Known
from analysis.command import DEBUG
from analysis.load import Run, RunError
from analysis.tables import config_columns
from xpyd.economics.verdict import MIN_BLOCK_PAIRS


@dataclass(frozen=True)
class PartResult:
    """A part, judged. ``measured`` is None where there is no value, and ``because`` says why."""

    part: Part
    judgement: Judgement
    measured: Measured | None
    modeled: Modeled | None
    because: str


@dataclass(frozen=True)
class Outcome:
    """A claim, judged; ``conditions``: a line for each run that it read; ``labels``: those of all of them."""

    claim: Claim
    judgement: Judgement
    parts: tuple[PartResult, ...]
    conditions: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def measured(self) -> bool:
        """Whether any part has a value."""
        return any(part.measured is not None for part in self.parts)


def evaluate(claims: Sequence[Claim], runs: Known) -> list[Outcome]:
    """Every claim, whatever is missing: a run that cannot be read is a reason, never an error."""
    return [_outcome(claim, runs) for claim in claims]


def readable(claims: Sequence[Claim], runs: Known) -> list[Claim]:
    """The claims that these runs say something about: their first measurement is there."""
    return [claim for claim in claims if claim.needs[0].name in runs]


def _outcome(claim: Claim, runs: Known) -> Outcome:
    parts = tuple(_part(part, runs) for part in claim.parts)
    used = {each.name: runs[each.name] for each in claim.needs if each.name in runs}
    measured_on = [run for run in used.values() if run.experiment != "economics"]
    labels = tuple(dict.fromkeys(label for run in measured_on for label in run.labels))
    conditions = tuple(_condition(name, run) for name, run in used.items())
    return Outcome(claim, combine([part.judgement for part in parts]), parts, conditions, labels)


def _part(part: Part, runs: Known) -> PartResult:
    modeled = None
    try:
        modeled = part.model(runs) if part.model is not None else None
        found = part.measure(runs)
    except (Unmeasurable, RunError) as error:
        return PartResult(part, Judgement.UNMEASURABLE, None, modeled, str(error))
    except NoValue as error:
        return PartResult(part, Judgement.UNDECIDED, None, modeled, str(error))
    except Exception as error:  # one claim's files that do not fit together must not take the others along
        if os.environ.get(DEBUG) == "1":
            raise
        because = f"the files of its runs do not fit together ({type(error).__name__}: {error}); {DEBUG}=1 shows where"
        return PartResult(part, Judgement.UNMEASURABLE, None, modeled, because)
    return PartResult(part, judge(found.value, part.claimed), found, modeled, _because(found))


def _because(found: Measured) -> str:
    """Why an interval is missing; nothing where there is one."""
    if found.value.known:
        return ""
    if found.num_samples < MIN_BLOCK_PAIRS:
        return f"no interval: {found.num_samples} {found.sampled}, and it needs {MIN_BLOCK_PAIRS}"
    return "no interval: some resamples give no value"


def _condition(name: str, run: Run) -> str:
    """What a run was made with, in one line."""
    columns = config_columns(run)
    keys = ("model", *(["placement"] if "placement" in run.config else []), "policy", "transport", "mode")
    words = [columns[key] for key in keys if columns[key]]
    words += ["modeled"] if "modeled" in run.labels else []
    slo, workload = run.config.get("slo"), run.config.get("workload")
    if workload:
        words.append(f"{workload['num_requests']} requests a block")
    if slo:
        words.append(f"limits {slo['ttft_s']:g} s to the first token and {slo['itl_s']:g} s a gap")
    routes = sorted(set(run.environment.get("routes", {}).values()))
    if routes:
        words.append(f"KV over {', '.join(routes)}")
    return f"{name}: {', '.join(words)}"
