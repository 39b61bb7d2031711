"""What moving a prompt's KV costs: layer by layer against whole, within a node and between nodes, on named links."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import pandas as pd

from analysis.claims.claim import Claim, Claimed, Measured, Measurement, Modeled, Part, Runs, Unmeasurable
from analysis.claims.measurements import COMMON, HANDED_OFF, measured
from analysis.load import Run
from analysis.requests import request_frame
from analysis.tokens import KEY
from xpyd import metrics
from xpyd.units import bytes_per_s_to_gbps, format_bytes, format_s

EIGHT_B_BYTES, EIGHT_B_TOKENS = 268_435_456, 2048  # 131,072 bytes a token
PLANNED_PREFILL_S = 0.205  # of 2048 tokens of an 8B, as the plan of this suite reckons
LEAST_SHARE, MOST_SHARE = 0.5, 1.05  # of a link's rate that a transfer must reach, for the link to be of that rate
WHOLE, LAYERWISE = "whole", "layerwise"
MODELED = Measurement(
    "economics",
    "economics",
    ("model=llama3_8b", f"economics.input_lens=[{EIGHT_B_TOKENS}]", "economics.rates_gbps=[10,200]"),
)


def moved(run: Run, mode: str) -> pd.DataFrame:
    """The requests that were handed off in a mode, pulled, with what moved. Raises Unmeasurable where none was."""
    transfers = run.tables["transfers"][[*KEY, "direction", "mode", "payload_bytes"]]
    frame = request_frame(run).merge(transfers, on=KEY)
    own = frame[(frame["mode"] == mode) & (frame["direction"] == "pull")]
    if own.empty:
        raise Unmeasurable(f"no KV was handed off in mode {mode}")
    return own


def exposed_shares(run: Run, mode: str) -> pd.Series:
    """Exposed transfer over prefill: the median hand-off of every repeat."""
    own = moved(run, mode)
    shares = pd.Series(metrics.penalty_ratio(own["exposed_transfer_s"], own["prefill_s"]), index=own.index)
    return shares.groupby(own["pair"]).median()


def transfer_times(run: Run) -> pd.Series:
    """Seconds of a whole transfer: the median hand-off of every repeat."""
    return moved(run, WHOLE).groupby("pair")["transfer_s"].median()


def payload(run: Run, mode: str) -> str:
    own = moved(run, mode)
    prefill = format_s(float(own["prefill_s"].median()))
    size = format_bytes(float(own["payload_bytes"].median()))
    return f"{size} of KV, {own['input_len'].iloc[0]} tokens; a prefill of {prefill}"


def missing_for_8b(run: Run, rate_gbps: float) -> list[str]:
    """What keeps a run from measuring the bill of an 8B on a link of this rate; empty: nothing."""
    own = moved(run, WHOLE)
    missing = []
    if abs(float(own["payload_bytes"].median()) / EIGHT_B_BYTES - 1) > 0.01:
        missing.append("an 8B model (2048 tokens of it are 256 MiB of KV)")
    if "CPU" in run.labels:
        missing.append("GPU ranks")
    if "shared node" in run.labels:
        missing.append("two nodes")
    found_gbps = bytes_per_s_to_gbps(float((own["payload_bytes"] / own["transfer_s"]).median()))
    if "emulated link" in run.labels or not LEAST_SHARE <= found_gbps / rate_gbps <= MOST_SHARE:
        missing.append(f"a link of {rate_gbps:g} Gb/s (this one moved {found_gbps:.3g} Gb/s)")
    return missing


def _exposed(mode: str, claimed: Claimed) -> Part:
    def measure(runs: Runs) -> Measured:
        run = runs[HANDED_OFF.name]
        return measured(exposed_shares(run, mode), "repeats", payload(run, mode))

    return Part(f"exposed, of prefill: {mode}", "share", claimed, measure)


def _timed(shared: bool) -> Callable[[Runs], Measured]:
    def measure(runs: Runs) -> Measured:
        run = runs[HANDED_OFF.name]
        if ("shared node" in run.labels) != shared:
            needed = "ranks on one node (placement.allow_shared_node=true)" if shared else "ranks on two nodes"
            raise Unmeasurable(f"needs {needed}")
        return measured(transfer_times(run), "repeats", payload(run, WHOLE))

    return measure


def _penalty(rate_gbps: float, claimed: Claimed) -> Part:
    def measure(runs: Runs) -> Measured:
        run = runs[HANDED_OFF.name]
        missing = missing_for_8b(run, rate_gbps)
        if missing:
            raise Unmeasurable(f"needs {', '.join(missing)}")
        return measured(exposed_shares(run, WHOLE), "repeats", payload(run, WHOLE))

    def model(runs: Runs) -> Modeled | None:
        rows = runs[MODELED.name].tables["economics"] if MODELED.name in runs else pd.DataFrame()
        own = rows[rows["rate_gbps"] == rate_gbps] if len(rows) else rows
        if own.empty:
            return None
        row = own.iloc[0]
        transfer_s = float(row["transfer_s"])
        by_sheet = f"{format_s(transfer_s)} beside {format_s(float(row['prefill_s']))} of prefill by the data sheet"
        planned = f"{transfer_s / PLANNED_PREFILL_S:.1%} of the plan's {format_s(PLANNED_PREFILL_S)}"
        return Modeled(float(row["penalty_ratio"]), f"{by_sheet} (economics.*), {planned}")

    return Part(f"exposed, of prefill: {rate_gbps:g} Gb/s", "share", claimed, measure, model)


CLAIMS = [
    Claim(
        "layerwise_bill",
        "Layer by layer, moving KV costs 1 to 3 % of prefill; as a whole 20 to 30 %.",
        COMMON,
        "Transfer that a request waits for after its prompt is computed, over the time of that prefill.",
        (HANDED_OFF,),
        (
            _exposed(LAYERWISE, Claimed(0.01, 0.03, "1 to 3 %", "below")),
            _exposed(WHOLE, Claimed(0.2, 0.3, "20 to 30 %")),
        ),
    ),
    Claim(
        "intra_node",
        "Within a node, moving a prompt's KV takes less than 2 ms.",
        COMMON + " No size is given with it.",
        "First piece posted to last byte landed, of one whole transfer at a time between ranks of one node.",
        (HANDED_OFF,),
        (Part("transfer", "s", Claimed(0, 2e-3, "under 2 ms", "below"), _timed(shared=True)),),
    ),
    Claim(
        "inter_node",
        "Between nodes, moving a prompt's KV takes less than 50 ms.",
        COMMON + " No size is given with it.",
        "First piece posted to last byte landed, of one whole transfer at a time between ranks of two nodes.",
        (HANDED_OFF,),
        (Part("transfer", "s", Claimed(0, 50e-3, "under 50 ms", "below"), _timed(shared=False)),),
    ),
    Claim(
        "fast_link_penalty",
        "On 200 Gb/s, an 8B model at 2048 tokens pays less than 6 % of its prefill for the transfer.",
        "Closed form in the plan of this suite: 256 MiB take 10.7 ms, 5.2 % of a prefill of 205 ms.",
        "Exposed transfer over prefill, whole, on the link and the model named.",
        (HANDED_OFF, MODELED),
        (_penalty(200, Claimed(0, 0.06, "under 6 %", "below")),),
    ),
    Claim(
        "slow_link_penalty",
        "On 10 Gb/s Ethernet, an 8B model at 2048 tokens pays more than its whole prefill for the transfer.",
        "Closed form in the plan of this suite: 256 MiB take 214.7 ms, 104.8 % of a prefill of 205 ms.",
        "Exposed transfer over prefill, whole, on the link and the model named.",
        (HANDED_OFF, MODELED),
        (_penalty(10, Claimed(1, inf, "over 100 %")),),
    ),
]
