"""Run folders with known content, written as a run writes them: streams or Parquet, config, environment, DONE."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from xpyd.records import SCHEMA_VERSION, TABLES, BlockRow, RequestRow, StageRow, StepRow, TokenRow, TransferRow
from xpyd.request import Stage

MS = 1_000_000
BLOCK_NS = 10_000 * MS
ARROW_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}
CONFIG: dict[str, Any] = {
    "experiment": "compare",
    "model": {"name": "tiny", "num_layers": 4},
    "placement": {"num_prefill": 1, "num_decode": 1, "num_colocated": 0, "allow_shared_node": True},
    "scheduler": {"policy": "chunked"},
    "transport": {"name": "ucx"},
    "transfer": {"mode": "layerwise", "first_token": "prefill"},
    "fabric": {"name": "auto", "rate_gbps": None, "emulated": False},
    "workload": {"num_requests": 2, "seed": 0},
    "slo": {"ttft_s": 0.5, "itl_s": 0.05},
    "launch": {"kind": "local"},
    "run": {"root": "runs"},
    "num_pairs": 5,
}
ENVIRONMENT: dict[str, Any] = {
    "commit": "0123456789abcdef",
    "hosts": ["alpha"],
    "labels": ["CPU", "shared node"],
    "versions": {"python": "3.11"},
    "mpi": "Open MPI",
    "routes": {"1->2": "tcp/lo", "2->1": "tcp/lo"},
    "ranks": [],
    "machines": {},
}


@dataclass(frozen=True)
class Way:
    """One request's way in one arm, in milliseconds; ``gaps`` between its tokens as the client saw them."""

    queue: float = 10
    prefill: float = 20
    exposed: float = 0
    admission: float = 0
    to_first: float = 0  # from PREFILL_END to the client having token 0
    gaps: tuple[float, ...] = (10, 10, 10)
    tokens: tuple[int, ...] | None = None
    margins: tuple[float, ...] | None = None
    failed: str = ""
    unfinished: bool = False
    moved: bool = False


def block_rows(block: int, pair: int, arm: str, ways: Sequence[tuple[int, Way]], ended: bool = True) -> list[Any]:
    """All rows of one block; ``ways`` lists (input_len, Way) of requests 0, 1, ... that arrive 100 ms apart."""
    rows: list[Any] = []
    begin = 1_000_000_000_000 + block * BLOCK_NS
    for request_id, (input_len, way) in enumerate(ways):
        output_len = len(way.gaps) + 1
        offset = request_id * 100 * MS
        rows.append(RequestRow(block, pair, arm, request_id, "default", input_len, output_len, offset))
        rows += _request_rows(block, request_id, begin + offset, way)
    if ended:
        moved = sum(way.moved for _, way in ways) * 1000
        rows.append(BlockRow(block, pair, arm, begin, begin + 1000 * MS, len(ways), 2000, moved, moved, -1))
    return rows


def _request_rows(block: int, request_id: int, arrived: int, way: Way) -> list[Any]:
    def at(milliseconds: float) -> int:
        return arrived + round(milliseconds * MS)

    begin, end = way.queue, way.queue + way.prefill
    landed, admitted = end + way.exposed, end + way.exposed + way.admission
    stages = {Stage.ARRIVED: at(0), Stage.ROUTED: at(1), Stage.PREFILL_BEGIN: at(begin)}
    if way.failed:
        return [
            *_stamps(block, request_id, stages),
            StageRow(block, request_id, "failed", 1, at(begin + 1), way.failed),
        ]
    if way.unfinished:
        return _stamps(block, request_id, stages)
    stages |= {Stage.PREFILL_END: at(end), Stage.DECODE_ADMIT: at(admitted)}
    if way.moved:
        stages |= {Stage.TRANSFER_BEGIN: at(begin + 1), Stage.TRANSFER_END: at(landed)}
    rows: list[Any] = []
    time = end + way.to_first
    for index, gap in enumerate((0.0, *way.gaps)):
        time += gap
        token = way.tokens[index] if way.tokens else index
        margin = way.margins[index] if way.margins else 1.0
        rank = 2 if way.moved and index else 1
        rows.append(TokenRow(block, request_id, index, token, at(time), at(time), rank, margin))
    stages[Stage.FINISHED] = at(time)
    rows.append(StepRow(block, 1, "colocated", at(begin), at(end), 64, 1, 0, 0, 100, 0, 0, 0))
    if way.moved:
        moved = (at(begin), at(begin + 1), at(landed))
        rows.append(TransferRow(block, request_id, 1, 2, "layerwise", "pull", False, 4, 1000, *moved, 0, True))
    return [*_stamps(block, request_id, stages), *rows]


def _stamps(block: int, request_id: int, stages: dict[Stage, int]) -> list[StageRow]:
    return [StageRow(block, request_id, stage.value, 1, t_ns) for stage, t_ns in stages.items()]


def write_run(
    folder: Path,
    rows: Sequence[Any],
    config: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
    predicted: dict[str, Any] | None = None,
    done: bool = True,
) -> Path:
    """Write a run folder: Parquet and DONE, or streams of one batch per ten rows when not ``done``."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **(config or {})}))
    (folder / "environment.json").write_text(json.dumps({**ENVIRONMENT, **(environment or {})}))
    if predicted is not None:
        (folder / "predicted.json").write_text(json.dumps({"calibration": {}, "classes": predicted}))
    for table, row_type in TABLES.items():
        own = [row for row in rows if type(row) is row_type]
        if own and done:
            pq.write_table(arrow_table(row_type, own), folder / f"{table}.parquet")
        elif own:
            (folder / "streams").mkdir(exist_ok=True)
            write_stream(folder / "streams" / f"{table}.attempt0.rank0.arrow", arrow_table(row_type, own))
    if done:
        (folder / "DONE").write_text("{}")
    return folder


def write_stream(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=10):
            writer.write_batch(batch)


def arrow_table(row_type: type, rows: Sequence[Any], version: int = SCHEMA_VERSION) -> pa.Table:
    hints = get_type_hints(row_type)
    columns = [pa.field(f.name, ARROW_TYPES[hints[f.name]], nullable=False) for f in fields(row_type)]
    schema = pa.schema(columns, metadata={"schema_version": str(version)})
    values = list(zip(*(astuple(row) for row in rows), strict=True))
    return pa.table([pa.array(v, field.type) for v, field in zip(values, schema, strict=True)], schema=schema)
