"""What a lossy codec does to the tokens: agreement of free decoding, and KL and logit error under teacher forcing.

Token 0 comes with the prompt from the prefill rank, so it is not counted: every step here decodes from coded KV.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis.format import NONE, digits, number
from analysis.load import Run
from analysis.results import Table, titled

CELLS = ("equal tokens %", "common prefix", "KL mnat", "KL at split", "logit error max", "mean")
MILLI = 1e3


@dataclass(frozen=True)
class Drift:
    """One codec over all prompts. NaN in ``kl_at_divergence`` where no prompt diverged."""

    num_prompts: int
    num_steps: int  # decoded tokens of each prompt
    num_diverged: int  # prompts with any token that differs
    agreement: float  # share of equal tokens, position by position, both arms decoding on their own
    common_prefix: float  # equal tokens before the first that differs, mean over prompts
    kl_nats: float  # mean over all steps, both arms fed the exact arm's tokens
    kl_at_divergence: float  # mean over prompts, at their first differing token: there the contexts are still equal
    max_logit_error: float
    mean_logit_error: float


def measure_drift(rows: pd.DataFrame) -> dict[str, Drift]:
    """One Drift per codec, in the order in which they were decoded."""
    return {str(codec): _drift(chosen) for codec, chosen in rows.groupby("codec", sort=False)}


def _drift(rows: pd.DataFrame) -> Drift:
    rows = rows.sort_values(["input_len", "prompt", "index"])
    differs = rows["exact_token"] != rows["coded_token"]
    prompts = rows.assign(differs=differs).groupby(["input_len", "prompt"])
    before = prompts["differs"].cummax()  # True from the first differing token on
    firsts = rows[differs].groupby(["input_len", "prompt"]).head(1)
    return Drift(
        num_prompts=prompts.ngroups,
        num_steps=int(prompts.size().max()),
        num_diverged=len(firsts),
        agreement=float(1 - differs.mean()),
        common_prefix=float((~before).groupby([rows["input_len"], rows["prompt"]]).sum().mean()),
        kl_nats=float(rows["kl_nats"].mean()),
        kl_at_divergence=float(firsts["kl_nats"].mean()),
        max_logit_error=float(rows["max_logit_error"].max()),
        mean_logit_error=float(rows["mean_logit_error"].mean()),
    )


def drift_cells(drift: Drift | None) -> tuple[str, ...]:
    """The cells of ``CELLS``; dashes where a run ended before this codec was decoded from."""
    if drift is None:
        return (NONE,) * len(CELLS)
    return (
        digits(drift.agreement * 100),
        digits(drift.common_prefix),
        *(number(value * MILLI, "") for value in (drift.kl_nats, drift.kl_at_divergence)),
        *(number(value, "") for value in (drift.max_logit_error, drift.mean_logit_error)),
    )


def drift_notes(run: Run) -> list[str]:
    """How to read the drift of this run: the scale of its logits, and whose they are."""
    rows = run.tables["divergence"]
    if rows.empty:
        return ["No token was decoded from coded KV: the run ended before."]
    first = rows[rows["codec"] == rows["codec"].iloc[0]]
    steps = int(first["index"].nunique())
    margin, spread = float(first["margin"].median()), float(first["logit_std"].mean())
    notes = [
        f"Equal tokens, common prefix (of {steps} decoded): each arm decodes greedily on its own, and after the first "
        "token that differs (the split) contexts differ too. KL (in thousandths of a nat) and logit error: both arms "
        "are fed the exact tokens.",
        f"For scale: the exact arm's logits have a standard deviation of {digits(spread)} and a median margin of "
        f"{digits(margin)} between the best two; an error far below the margin changes no token.",
    ]
    if "random weights" in run.labels:
        notes.append(
            "Random weights: neither the KV values nor the margins are those of a trained model, so the drift shows "
            "the method and ranks the codecs; it says nothing of quality. Use model=checkpoint model.checkpoint=FOLDER."
        )
    if "random prompts" in run.labels:
        notes.append("Random prompts: give sweep.prompts=FILE, token ids of real text, beside a trained model.")
    return notes


def drift_table(run: Run) -> Table:
    """The drift of every codec at every prompt length."""
    rows = []
    for input_len, chosen in run.tables["divergence"].groupby("input_len"):
        for codec, drift in measure_drift(chosen).items():
            diverged = f"{drift.num_diverged} of {drift.num_prompts}"
            rows.append((str(input_len), codec, diverged, *drift_cells(drift)))
    columns = ("input tokens", "codec", "diverged", *CELLS)
    return Table(titled("Drift by prompt length, measured", run.labels), columns, rows, drift_notes(run), num_left=2)
