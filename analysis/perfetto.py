"""A run as a trace for Perfetto (ui.perfetto.dev) or chrome://tracing: every rank's steps, transfers and requests.

python -m analysis.perfetto runs/compare/20260101-120000-000000 --block 3

One clock for all ranks, the client's. Each rank is a process; each request is a track of its own under the client,
cut into the stages that add up to its end-to-end time. Chrome's JSON trace format: times in microseconds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import command
from analysis.load import Run, RunError, load_run
from xpyd.request import Stage

Event = dict[str, Any]
NS_PER_US = 1000
CLIENT_RANK = 0
BLOCKS_TRACK, STEPS_TRACK = 1, 2  # threads of a process
# What a request does from each stamp to the next one that it has.
SPANS = {
    Stage.ARRIVED: "queue",
    Stage.PREFILL_BEGIN: "prefill",
    Stage.PREFILL_END: "exposed transfer",
    Stage.TRANSFER_END: "admission",
    Stage.DECODE_ADMIT: "decode",
}
COUNTERS = ("num_free_kv_blocks", "num_waiting", "num_decode_seqs")


def trace(run: Run, blocks: Sequence[int] | None = None) -> dict[str, Any]:
    """The whole trace as JSON content; ``blocks``: only these. Raises RunError where the run has no stamp to show."""
    tables = {name: _chosen(run.tables[name], blocks) for name in ("blocks", "stages", "steps", "transfers")}
    if tables["stages"].empty:
        known = sorted(int(block) for block in run.tables["stages"]["block"].unique())
        raise RunError(f"{run.paths[0]}: no stamp in blocks {blocks or 'at all'}; this run has blocks {known}")
    starts = [tables["stages"]["t_ns"], *(tables[name]["begin_ns"] for name in ("blocks", "steps", "transfers"))]
    origin_ns = min(int(times.min()) for times in starts if len(times))  # Perfetto drops what begins before zero
    events = [
        *_processes(run),
        *_blocks(tables["blocks"], origin_ns),
        *_steps(tables["steps"], origin_ns),
        *_transfers(tables["transfers"], origin_ns),
        *_requests(tables["stages"], origin_ns),
    ]
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"run": run.name, "labels": run.labels}}


def _processes(run: Run) -> Iterator[Event]:
    """Names: ranks as processes, in order, with role and node."""
    for place in run.environment.get("ranks", []):
        name = f"rank {place['rank']}: {place['role']} on {place['node']}"
        yield _meta("process_name", place["rank"], {"name": name})
        yield _meta("process_sort_index", place["rank"], {"sort_index": place["rank"]})
        yield _meta("thread_name", place["rank"], {"name": "engine steps"}, STEPS_TRACK)
    yield _meta("thread_name", CLIENT_RANK, {"name": "comparison blocks"}, BLOCKS_TRACK)


def _blocks(blocks: pd.DataFrame, origin_ns: int) -> Iterator[Event]:
    for row in _records(blocks):
        where = {"pid": CLIENT_RANK, "tid": BLOCKS_TRACK, "cat": "block"}
        name = f"block {row['block']}: {row['arm']}, pair {row['pair']}"
        details = {"num_requests": row["num_requests"]}
        yield _complete(name, row["begin_ns"], row["end_ns"], origin_ns, where, details)


def _steps(steps: pd.DataFrame, origin_ns: int) -> Iterator[Event]:
    """A slice per engine step, and counters that change with it."""
    for row in _records(steps):
        prefill, decode = row["num_prefill_tokens"], row["num_decode_seqs"]
        parts = [f"prefill {prefill}"] * bool(prefill) + [f"decode {decode}"] * bool(decode)
        details = {key: value for key, value in row.items() if key.startswith("num_")} | {"block": row["block"]}
        where = {"pid": row["rank"], "tid": STEPS_TRACK, "cat": row["role"]}
        yield _complete(" + ".join(parts), row["begin_ns"], row["end_ns"], origin_ns, where, details)
        for name in COUNTERS:
            at = {"ph": "C", "name": name, "pid": row["rank"], "ts": _us(row["end_ns"], origin_ns)}
            yield {**at, "args": {name: row[name]}}


def _transfers(transfers: pd.DataFrame, origin_ns: int) -> Iterator[Event]:
    """Each hand-off twice: leaving its source and arriving at its destination."""
    for row in _records(transfers):
        details = {key: row[key] for key in ("mode", "num_pieces", "payload_bytes", "num_inflight", "verified")}
        ends = (
            (row["src_rank"], f"KV to rank {row['dst_rank']}"),
            (row["dst_rank"], f"KV from rank {row['src_rank']}"),
        )
        for pid, name in ends:
            span = (row["begin_ns"], row["end_ns"])
            track = {"pid": pid, "cat": "transfer", "id": f"{row['block']}.{row['request_id']}.{pid}"}
            yield from _async(f"{name}, request {row['request_id']}", *span, origin_ns, track, details)


def _requests(stages: pd.DataFrame, origin_ns: int) -> Iterator[Event]:
    """A track per request: its whole time, and inside it the stages, end to end."""
    for _, own in stages.sort_values("t_ns", kind="stable").groupby(["block", "request_id"]):
        block, request_id = (int(own[key].iloc[0]) for key in ("block", "request_id"))
        stamps = dict(zip(own["stage"].iloc[::-1], own["t_ns"].iloc[::-1], strict=True))  # the first stamp counts
        end = stamps.get(Stage.FINISHED, stamps.get(Stage.FAILED))
        if end is None or Stage.ARRIVED not in stamps:
            continue
        reason = "".join(own["reason"])
        track = {"pid": CLIENT_RANK, "cat": "request", "id": f"{block}.{request_id}"}
        whole = f"request {request_id}{' FAILED' if Stage.FAILED in stamps else ''}"
        details = {"block": block, **({"reason": reason} if reason else {})}
        inner = []
        reached = [(stage, stamps[stage]) for stage in SPANS if stage in stamps]
        for (stage, begin), (_, after) in pairwise([*reached, (Stage.FINISHED, end)]):
            inner += list(_async(SPANS[stage], begin, max(begin, min(after, end)), origin_ns, track, {}))
        begin_event, end_event = _async(whole, stamps[Stage.ARRIVED], end, origin_ns, track, details)
        yield from (begin_event, *inner, end_event)


def _chosen(rows: pd.DataFrame, blocks: Sequence[int] | None) -> pd.DataFrame:
    return rows if not blocks else rows[rows["block"].isin(blocks)]


def _records(rows: pd.DataFrame) -> list[Event]:
    return [{str(key): value for key, value in row.items()} for row in rows.to_dict("records")]


def _us(t_ns: int, origin_ns: int) -> float:
    return (int(t_ns) - origin_ns) / NS_PER_US


def _meta(kind: str, pid: int, details: Event, tid: int = 0) -> Event:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": details}


def _complete(name: str, begin_ns: int, end_ns: int, origin_ns: int, where: Event, details: Event) -> Event:
    span = {"ts": _us(begin_ns, origin_ns), "dur": _us(end_ns, begin_ns)}
    return {"ph": "X", "name": name, **span, **where, "args": details}


def _async(name: str, begin_ns: int, end_ns: int, origin_ns: int, track: Event, details: Event) -> Iterator[Event]:
    """Begin and end of a span that may overlap others of its process: they share a track by category and id."""
    yield {"ph": "b", "name": name, "ts": _us(begin_ns, origin_ns), "tid": 0, **track, "args": details}
    yield {"ph": "e", "name": name, "ts": _us(end_ns, origin_ns), "tid": 0, **track, "args": {}}


def main(argv: Sequence[str] | None = None) -> int:
    made = argparse.ArgumentParser(
        prog="python -m analysis.perfetto", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("run", type=Path, metavar="RUN", help="a run folder of compare or serve")
    made.add_argument("--out", type=Path, metavar="FILE", help="where the trace goes (default: RUN/trace.json)")
    made.add_argument("--block", type=int, action="append", metavar="N", help="only this block; may be given again")
    made.add_argument("--allow-partial", action="store_true", help="read a run without DONE: stopped or still running")
    options = made.parse_args(argv)
    try:
        run = load_run(options.run, options.allow_partial)
        command.check_experiment(run, ["compare", "serve"])
        out = options.out or options.run / "trace.json"
        out.write_text(json.dumps(trace(run, options.block), default=int))
    except (RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return command.USER_ERROR
    print(f"{out}: open it at ui.perfetto.dev or chrome://tracing (the page reads it locally)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
