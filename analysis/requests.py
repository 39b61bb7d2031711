"""One row per offered request, from the event log: the ground of every other table.

Column work only, so that millions of token rows take seconds (see ``analysis.tokens``). What a metric means is defined
in ``xpyd.metrics``. Stamps here count from the first stamp of their block: exact as floats, NaN where a request never
reached a stage.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.load import Run
from analysis.tokens import KEY, Tokens, order_tokens
from xpyd import metrics
from xpyd.economics.ledger import length_class
from xpyd.request import Stage
from xpyd.units import NS_PER_S

MAX_RESIDUAL = 0.02  # of TTFT: above it the stages do not explain what the client saw
STAGE_TIMES = ["queue_s", "prefill_s", "exposed_transfer_s", "admission_s", "decode_s"]


def request_frame(run: Run, tokens: Tokens | None = None) -> pd.DataFrame:
    """One row per offered request, in the order of the run's table: stamps (``<stage>_ns``), stage times, metrics.

    ``tokens``: the run's own, where the caller has ordered them already. ``status`` is finished, failed (see
    ``reason``) or unfinished. ``ttft_s`` is what the client saw; ``ttft_prefill_s`` and ``ttft_decode_s`` are the two
    places that token 0 can leave from. The five of ``STAGE_TIMES`` add up to ``e2e_s``. ``delivery_s`` is the first
    token's way from its worker to the client; ``residual_s`` is ``ttft_s`` less that and the stages before it, and
    ``residual_flag`` marks where it exceeds two percent. ``lateness_s`` is how late the open loop sent the request.
    """
    frame = run.tables["requests"].copy()
    classes = {input_len: length_class(input_len) for input_len in frame["input_len"].unique()}
    frame["length"] = frame["input_len"].map(classes)
    for columns in (_stamps(run.tables["stages"]), _failures(run.tables["stages"])):
        frame = frame.merge(columns, on=KEY, how="left")
    frame = frame.join(_token_columns(run, tokens or order_tokens(run)))
    frame["reason"] = frame["reason"].fillna("")
    ended = [frame["finished_ns"].notna(), frame["failed_ns"].notna()]
    frame["status"] = np.select(ended, ["finished", "failed"], "unfinished")
    return _with_times(frame)


def _stamps(stages: pd.DataFrame) -> pd.DataFrame:
    """One column per stage, in ns from the block's first stamp; a stage stamped twice counts the first time."""
    relative = stages.assign(t_ns=stages["t_ns"] - stages.groupby("block")["t_ns"].transform("min"))
    once = relative.sort_values("t_ns", kind="stable").drop_duplicates([*KEY, "stage"])
    wide = once.pivot(index=KEY, columns="stage", values="t_ns").astype("float64")
    wide = wide.reindex(columns=[stage.value for stage in Stage]).add_suffix("_ns")
    ends = once[once["stage"] == Stage.PREFILL_END].set_index(KEY)
    return wide.join(ends["rank"].rename("prefill_rank")).reset_index()


def _failures(stages: pd.DataFrame) -> pd.DataFrame:
    return stages.loc[stages["stage"] == Stage.FAILED, [*KEY, "reason"]].drop_duplicates(KEY)


def _token_columns(run: Run, tokens: Tokens) -> pd.DataFrame:
    """Per request: its first and last token, where the first came from, and what its gaps say."""
    table, counts = run.tables["tokens"], tokens.counts
    some = counts > 0
    firsts, lasts = tokens.starts[:-1][some], tokens.starts[1:][some] - 1
    rows = tokens.order[firsts]
    found = pd.DataFrame(index=np.flatnonzero(some))
    found["first_token_ns"] = tokens.at_ns[firsts]
    found["last_token_ns"] = tokens.at_ns[lasts]
    found["first_token_rank"] = table["rank"].to_numpy()[rows]
    found["delivery_ns"] = (table["t_ns"].to_numpy()[rows] - table["emitted_ns"].to_numpy()[rows]).astype(np.float64)
    found = found.reindex(np.arange(len(counts)))
    found["num_tokens"] = counts
    found["mean_gap_s"] = metrics.mean_gap_by_request(tokens.gaps)
    found["max_gap_s"] = metrics.max_gap_by_request(tokens.gaps)
    found["tbt_tail_s"] = metrics.tbt_tail_by_request(tokens.gaps)
    return found


def _with_times(frame: pd.DataFrame) -> pd.DataFrame:
    arrived, prefill_end = frame["arrived_ns"], frame["prefill_end_ns"]
    admitted = frame["decode_admit_ns"].fillna(prefill_end)  # a request of one token never decodes
    landed = frame["transfer_end_ns"].fillna(prefill_end)  # nothing moved, nothing is exposed
    frame["lateness_s"] = (frame["routed_ns"] - arrived) / NS_PER_S
    frame["ttft_s"] = metrics.ttft_s(arrived, frame["first_token_ns"])
    frame["ttft_prefill_s"] = metrics.ttft_s(arrived, prefill_end)
    frame["ttft_decode_s"] = metrics.ttft_s(arrived, admitted)
    frame["tpot_s"] = metrics.tpot_s(frame["first_token_ns"], frame["last_token_ns"], frame["num_tokens"])
    frame["e2e_s"] = metrics.e2e_s(arrived, frame["last_token_ns"])
    frame["queue_s"] = (frame["prefill_begin_ns"] - arrived) / NS_PER_S
    frame["prefill_s"] = (prefill_end - frame["prefill_begin_ns"]) / NS_PER_S
    frame["transfer_s"] = metrics.transfer_s(frame["transfer_begin_ns"], frame["transfer_end_ns"])
    frame["exposed_transfer_s"] = metrics.exposed_transfer_s(prefill_end, landed)
    frame["admission_s"] = metrics.handoff_s(prefill_end, admitted) - frame["exposed_transfer_s"]
    frame["decode_s"] = (frame["last_token_ns"] - admitted) / NS_PER_S
    from_prefill = frame["first_token_rank"] == frame["prefill_rank"]
    explained_ns = prefill_end.where(from_prefill, admitted) + frame["delivery_ns"]
    frame["delivery_s"] = frame["delivery_ns"] / NS_PER_S
    frame["residual_s"] = (frame["first_token_ns"] - explained_ns) / NS_PER_S
    frame["residual_flag"] = frame["residual_s"].abs() > MAX_RESIDUAL * frame["ttft_s"]
    return frame
