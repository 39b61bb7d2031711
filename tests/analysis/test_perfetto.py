"""The trace export: every span closes, nests and lies where its stamps say."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from analysis import perfetto
from tests.analysis.synthetic import Way, block_rows, write_run

MOVED = Way(queue=10, prefill=20, exposed=6, admission=4, gaps=(15, 10), moved=True)
RANKS = [{"rank": r, "role": role, "node": "n1", "cores": []} for r, role in enumerate(("client", "prefill", "decode"))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        *block_rows(0, 0, "colocated", [(100, Way()), (100, Way(unfinished=True))]),
        *block_rows(1, 0, "disaggregated", [(100, MOVED), (100, Way(failed="rank 1: out of KV blocks"))]),
    ]
    return write_run(tmp_path / "compare" / "r", rows, environment={"ranks": RANKS})


def events_of(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    assert perfetto.main([str(folder), *arguments]) == 0
    events: list[dict[str, Any]] = json.loads((folder / "trace.json").read_text())["traceEvents"]
    return events


def test_every_span_closes_and_nests(folder: Path) -> None:
    open_spans: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for event in events_of(folder):
        track = tuple(event.get(key) for key in ("pid", "cat", "id"))
        if event["ph"] == "b":
            assert all(outer["ts"] <= event["ts"] for outer in open_spans[track])
            open_spans[track].append(event)
        elif event["ph"] == "e":
            begun = open_spans[track].pop()
            assert begun["name"] == event["name"]
            assert begun["ts"] <= event["ts"]
        elif event["ph"] == "X":
            assert event["dur"] >= 0
    assert not any(open_spans.values())


def test_a_moved_request_shows_its_stages_end_to_end(folder: Path) -> None:
    events = [e for e in events_of(folder, "--block", "1") if e.get("cat") == "request" and e["id"] == "1.0"]
    spans = {e["name"]: [e["ts"]] for e in events if e["ph"] == "b"}
    for event in events:
        if event["ph"] == "e":
            spans[event["name"]].append(event["ts"])
    milliseconds = {name: [round(t / 1000, 3) for t in span] for name, span in spans.items()}
    assert milliseconds == {
        "request 0": [0, 55],
        "queue": [0, 10],
        "prefill": [10, 30],
        "exposed transfer": [30, 36],
        "admission": [36, 40],
        "decode": [40, 55],
    }


def test_transfers_show_on_both_ranks_and_failures_say_why(folder: Path) -> None:
    events = events_of(folder)
    transfers = {(e["pid"], e["name"]) for e in events if e.get("cat") == "transfer"}
    assert transfers == {(1, "KV to rank 2, request 0"), (2, "KV from rank 1, request 0")}
    failed = [e for e in events if e["name"] == "request 1 FAILED" and e["ph"] == "b"]
    assert [e["args"]["reason"] for e in failed] == ["rank 1: out of KV blocks"]
    names = {e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {"rank 0: client on n1", "rank 1: prefill on n1", "rank 2: decode on n1"}


def test_nothing_begins_before_zero_where_perfetto_drops_it(folder: Path) -> None:
    """A block begins before its first request arrives, and a transfer may before the first step that is kept."""
    path = folder / "blocks.parquet"
    blocks = pq.read_table(path)
    earlier = pc.subtract(blocks["begin_ns"], 5_000_000)
    pq.write_table(blocks.set_column(blocks.schema.get_field_index("begin_ns"), "begin_ns", earlier), path)
    stamps = [event["ts"] for event in events_of(folder) if "ts" in event]
    assert min(stamps) == 0


def test_a_block_that_is_not_there_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert perfetto.main([str(folder), "--block", "9"]) == 2
    assert "this run has blocks [0, 1]" in capsys.readouterr().err
