"""Tables that several experiments share: requests, bytes by counter, how far the stamps can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.format import number
from analysis.load import Run
from analysis.results import Table, titled
from analysis.statistics import instance_of
from analysis.traffic import count_traffic
from xpyd.units import NS_PER_S, format_bytes

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
    "delivery_s",
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


def traffic_table(run: Run) -> Table:
    rows = [
        (t.arm, t.finding, _bytes(t.ledger_bytes), _bytes(t.transport_bytes), _bytes(t.interface_bytes))
        for t in count_traffic(run)
    ]
    routes = sorted(set(run.environment.get("routes", {}).values()))
    transfers = run.tables["transfers"]
    verified = int(transfers["verified"].sum())
    notes = [
        f"Transport {run.config['transport']['name']} over {', '.join(routes) or 'an unknown route'}.",
        f"Checksums of every layer and block compared across the wire in {verified} of {len(transfers)} transfers.",
    ]
    if codec_of(run) != "none":
        notes.append(f"KV moves in codec {codec_of(run)}: ledger and transport count encoded bytes.")
    columns = ("arm", "finding", "ledger", "transport", "interfaces")
    return Table(titled("Bytes moved, by counter, measured", run.labels), columns, rows, notes, num_left=2)


def codec_of(run: Run) -> str:
    """The codec that KV travelled in; "none" where runs know of none."""
    return str(run.config.get("transfer", {}).get("codec", {}).get("name", "none"))


def checks_table(run: Run, frame: pd.DataFrame) -> Table:
    """What was offered, what became of it, and how far the stamps can be trusted."""
    rows = []
    for arm, requests in frame.groupby("arm", sort=False):
        counts = requests["status"].value_counts()
        numbers = [len(requests), *(int(counts.get(status, 0)) for status in ("finished", "failed", "unfinished"))]
        late = number(float(requests["lateness_s"].quantile(0.99)), "s")
        delivery, residual = (number(float(requests[n].median()), "s") for n in ("delivery_s", "residual_s"))
        rows.append((str(arm), *map(str, numbers), late, delivery, residual, str(int(requests["residual_flag"].sum()))))
    blocks = run.tables["blocks"]
    clock_error_s = float(blocks["clock_error_ns"].max()) / NS_PER_S if len(blocks) else float("nan")
    notes = [
        f"Every latency across ranks is uncertain by the clock error, at most {number(clock_error_s, 's')}."
        if clock_error_s
        else "All ranks shared one clock: latencies across them have no clock error."
    ]
    notes.append(
        "Delivery: token 0 from its worker to the client. Residual: TTFT that no stage explains; above 2 % a defect."
    )
    failed = frame[frame["status"] == "failed"].groupby(["arm", "reason"], as_index=False).size().head(5)
    notes += [f"{row.arm}: {row.size} failed: {row.reason}" for row in failed.itertuples()]
    columns = (
        "arm",
        "offered",
        "finished",
        "failed",
        "unfinished",
        "late p99",
        "delivery p50",
        "residual p50",
        "residual > 2 % of TTFT",
    )
    return Table(titled("Requests and stamps, measured", run.labels), columns, rows, notes)


def placement_name(placement: Mapping[str, Any]) -> str:
    """``1P2D``, ``2C``; with the ranks of an instance where they are several: ``1P(tp2)1D``."""

    def part(role: str, letter: str) -> str:
        kind, width = instance_of(placement, role)
        return f"{placement.get(f'num_{role}', 0)}{letter}" + (f"({kind}{width})" if width > 1 else "")

    return part("colocated", "C") if placement.get("num_colocated") else part("prefill", "P") + part("decode", "D")


def config_columns(run: Run) -> dict[str, str]:
    """The settings that a reader of several runs tells them apart by."""
    placement = run.config.get("placement", {})
    return {
        "run": run.name,
        "labels": ", ".join(run.labels),
        "model": str(run.config.get("model", {}).get("name", "")),
        "placement": placement_name(placement),
        "policy": str(run.config.get("scheduler", {}).get("policy", "")),
        "transport": str(run.config.get("transport", {}).get("name", "")),
        "mode": str(run.config.get("transfer", {}).get("mode", "")),
    }


def _bytes(count: int) -> str:
    return "not readable" if count < 0 else format_bytes(count)
