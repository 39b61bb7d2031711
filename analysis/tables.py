"""Tables that several experiments share: every request of a run."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.format import number
from analysis.results import Table, titled

TIMES = [
    "ttft_s",
    "tpot_s",
    "max_gap_s",
    "e2e_s",
    "queue_s",
    "prefill_s",
    "exposed_transfer_s",
    "admission_s",
    "decode_s",
]
MAX_ROWS = 400  # a page stays light; the tables of the run folder hold all


def request_table(frame: pd.DataFrame, labels: Sequence[str]) -> Table:
    """One row per offered request, the residual printed and flagged; cut after ``MAX_ROWS``."""
    columns = ("pair", "arm", "request", "class", "in", "out", "status", *TIMES, "residual_s")
    rows = []
    for row in frame.head(MAX_ROWS).to_dict("records"):
        times = (number(float(row[name]), "s") for name in TIMES)
        residual = number(float(row["residual_s"]), "s") + (" (!)" if row["residual_flag"] else "")
        status = row["status"] if not row["reason"] else f"{row['status']}: {row['reason']}"
        what = (row["pair"], row["arm"], row["request_id"], row["class_name"], row["input_len"], row["output_len"])
        rows.append((*map(str, what), status, *times, residual))
    notes = ["(!): the stages miss more than 2 % of TTFT, a defect of the measurement."]
    if len(frame) > MAX_ROWS:
        notes.append(f"The first {MAX_ROWS} of {len(frame)} requests; the run folder's tables hold all.")
    return Table(titled("Requests, measured", labels), columns, rows, notes, num_left=2)
