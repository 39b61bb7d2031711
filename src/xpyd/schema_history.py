"""What the tables of earlier versions lacked or called otherwise, so that their runs still load.

``SCHEMA_VERSION`` in ``xpyd.records`` counts. Version 2 brought resharding, staging and codecs, version 3 the ways of
``scaling``. A new column of an existing table, or a new name, gets an entry here in the same commit; whole new tables
need none, an older run simply has no rows of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

NAN = math.nan


@dataclass(frozen=True)
class Like:
    """The value of another column of the same row."""

    column: str


Value = int | float | str | bool | Like
# Table -> column -> what a row of a version without it means. NaN: was not measured then.
ADDED: dict[str, dict[str, Value]] = {
    "transfers": {"direction": "pull", "staged": False, "reserved_ns": Like("begin_ns")},
    "steps": {"num_reserved_kv_blocks": 0},
    "codec_points": {"wall_s": NAN},
    "caches": {"num_remote_tokens": 0},
    "plan": {"codec": "", "hybrid": False, "moved_share": NAN, "threshold_tokens": NAN},
    "scaling": {"kind": "tp", "variant": "", "num_micro_batches": 0, "rank": 0, "work_s": NAN},
}
# Table -> old name -> new name.
RENAMED: dict[str, dict[str, str]] = {
    "scaling": {"reduce_s": "exchange_s", "reduce_bytes": "exchange_bytes"},
}

Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)


def upgraded(rows: Rows, table: str, schema: pa.Schema) -> Rows | None:
    """Rows of an earlier version with today's columns; None where this history does not lead to ``schema``.

    ``rows`` that have them already come back as they are, but for the version in their metadata.
    """
    if not rows.schema.equals(schema, check_metadata=False):
        names = [RENAMED.get(table, {}).get(name, name) for name in rows.schema.names]
        columns = dict(zip(names, rows.columns, strict=True))
        columns |= _missing(columns, table, schema, rows.num_rows)
        if set(columns) != set(schema.names):
            return None
        if any(columns[field.name].type != field.type for field in schema):
            return None
        rows = type(rows).from_arrays([columns[name] for name in schema.names], schema=schema)
    return rows.replace_schema_metadata(schema.metadata)


def _missing(columns: dict[str, pa.Array], table: str, schema: pa.Schema, num_rows: int) -> dict[str, pa.Array]:
    """The columns that came later, filled."""
    found = {}
    for name, value in ADDED.get(table, {}).items():
        if name in columns or name not in schema.names:
            continue
        if not isinstance(value, Like):
            found[name] = pa.repeat(pa.scalar(value, schema.field(name).type), num_rows)
        elif value.column in columns:
            found[name] = columns[value.column]
    return found
