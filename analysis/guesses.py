"""What guessing ahead did to the steps of each arm: how often it was right, what it took, how long steps became."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.format import digits, number
from analysis.load import Run
from analysis.results import Table, titled
from xpyd.records import COLOCATED, COLOCATED_SPECULATIVE, DISAGGREGATED, DISAGGREGATED_SPECULATIVE
from xpyd.units import NS_PER_S

PLAIN_OF = {COLOCATED_SPECULATIVE: COLOCATED, DISAGGREGATED_SPECULATIVE: DISAGGREGATED}


@dataclass(frozen=True)
class Guessing:
    """One arm. Steps are those with decodes and no prompt chunk; NaN where none was measured."""

    arm: str
    num_guessed: int
    num_accepted: int
    tokens_per_step: float  # of one decoding sequence: 1 without a guess that came true
    step_s: float  # mean
    plain_step_s: float  # of the same arm without guesses
    draft_share: float  # of the seconds of its decode steps, the draft's prefill left out
    draft_prefill_s: float  # per request
    num_draft_prefill_tokens: int

    @property
    def acceptance(self) -> float:
        return self.num_accepted / self.num_guessed if self.num_guessed else float("nan")

    @property
    def gain(self) -> float:
        """Tokens a second of a sequence in such steps, with guesses over without."""
        return self.tokens_per_step * self.plain_step_s / self.step_s


def guessing_by_arm(run: Run) -> list[Guessing]:
    """Every arm that guessed in a block that ended, in the order of playing."""
    blocks = run.tables["blocks"][["block", "arm"]]
    guesses = run.tables["speculations"].merge(blocks, on="block")
    steps = run.tables["steps"].merge(blocks, on="block")
    return [_guessing(run, str(arm), own, steps) for arm, own in guesses.groupby("arm", sort=False)]


def _guessing(run: Run, arm: str, own: pd.DataFrame, steps: pd.DataFrame) -> Guessing:
    joined = own.merge(steps.drop(columns=["arm", "num_decode_seqs"]), on=["block", "rank", "begin_ns"])
    pure = joined[(joined["num_prefill_tokens"] == 0) & (joined["num_draft_prefill_tokens"] == 0)]
    plain = steps[(steps["arm"] == PLAIN_OF.get(arm, "")) & (steps["num_prefill_tokens"] == 0)]
    plain = plain[plain["num_decode_seqs"] > 0]
    num_requests = int(run.tables["requests"]["block"].isin(own["block"].unique()).sum())
    return Guessing(
        arm=arm,
        num_guessed=int(own["num_guessed_tokens"].sum()),
        num_accepted=int(own["num_accepted_tokens"].sum()),
        tokens_per_step=1 + float(own["num_accepted_tokens"].sum() / own["num_decode_seqs"].sum()),
        step_s=_mean_s(pure),
        plain_step_s=_mean_s(plain),
        draft_share=float(pure["draft_s"].sum() / (_mean_s(pure) * len(pure))) if len(pure) else float("nan"),
        draft_prefill_s=float(own["draft_prefill_s"].sum() / num_requests),
        num_draft_prefill_tokens=int(own["num_draft_prefill_tokens"].sum()),
    )


def _mean_s(steps: pd.DataFrame) -> float:
    return float((steps["end_ns"] - steps["begin_ns"]).mean() / NS_PER_S)


def guessing_tables(run: Run) -> list[Table]:
    """For a run that may have guessed: one table, or none."""
    found = guessing_by_arm(run)
    return [guessing_table(run, found)] if found else []


def guessing_table(run: Run, found: Sequence[Guessing]) -> Table:
    rows = [
        (
            PLAIN_OF.get(each.arm, each.arm),
            number(each.acceptance, "share"),
            digits(each.tokens_per_step),
            number(each.plain_step_s, "s"),
            number(each.step_s, "s"),
            number(each.draft_share, "share"),
            number(each.gain, ""),
            number(each.draft_prefill_s, "s"),
        )
        for each in found
    ]
    columns = (
        "arm",
        "accepted",
        "tokens a step",
        "step without",
        "step with",
        "drafting",
        "gain",
        "draft prefill",
    )
    notes = [
        f"Draft: {draft_name(run)}. Accepted: of the guessed tokens. Tokens a step: of one decoding sequence.",
        "Steps: means over decode steps without a prompt chunk. Gain: tokens a second of a sequence in "
        "those steps, with guesses over without; what is left of it end to end is in the other tables.",
        "Draft prefill: per request; the draft's KV is never handed off, so a decode rank computes it too.",
    ]
    return Table(titled("Guessing by arm, measured", run.labels), columns, rows, notes)


def draft_name(run: Run) -> str:
    """``ngram, 3 tokens``; with its model or layers where it has some."""
    settings = run.config.get("speculation", {})
    draft = str(settings.get("draft", "none"))
    if draft == "model":
        draft = f"model {settings['model']['name']}"
    if draft == "layers":
        model = run.config["model"]  # beside a checkpoint its shape says nothing
        of = "" if model.get("checkpoint") else f"of {model['num_layers']} "
        draft = f"the first {settings['num_layers']} {of}layers"
    return f"{draft}, {settings.get('num_tokens')} tokens"
