"""What a burst of prefill does to the decode batch beside it."""

from __future__ import annotations

import pandas as pd

from analysis.claims.claim import Claim, Claimed, Measured, Measurement, Part, Runs, Unmeasurable
from analysis.claims.measurements import COMMON, measured_ratio

GAPS = Measurement(
    "interference",
    "interference",
    ("placement=1c", "sweep.chunk_tokens=[128,512]", "sweep.num_decode_seqs=[8]", "sweep.num_repeats=6"),
    quick=("sweep.chunk_tokens=[512]", "sweep.num_gaps=6", "sweep.num_repeats=5"),
)


def gap_ratios(gaps: pd.DataFrame) -> pd.Series:
    """Median gap beside the largest chunk over the same batch's alone, by repeat; of the largest batch."""
    own = gaps[gaps["num_decode_seqs"] == gaps["num_decode_seqs"].max()]
    medians = own.groupby(["repeat", "chunk_tokens"])["gap_s"].median().unstack()
    if 0 not in medians or len(medians.columns) < 2:
        raise Unmeasurable("the run has no gaps alone, or none beside a chunk")
    found: pd.Series = medians[max(medians.columns)] / medians[0]
    return found


def _burst(runs: Runs) -> Measured:
    gaps = runs[GAPS.name].tables["gaps"]
    batch, chunk = gaps["num_decode_seqs"].max(), gaps["chunk_tokens"].max()
    return measured_ratio(gap_ratios(gaps), "repeats", f"{batch} decodes beside {chunk} prompt tokens in the same step")


CLAIMS = [
    Claim(
        "prefill_burst",
        "A burst of prefill raises the gaps of the decodes beside it 2 to 30 times.",
        COMMON,
        "Median gap of a decode batch that shares its step with a prompt, over the same batch's median gap alone.",
        (GAPS,),
        (Part("gap beside a prompt, over alone", "ratio", Claimed(2, 30, "2 to 30 times", "above"), _burst),),
    )
]
