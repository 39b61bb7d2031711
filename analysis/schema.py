"""The tables of a run folder, column by column, as Markdown: ``docs/schema.md`` is this program's output.

python -m analysis.schema > docs/schema.md
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields

from xpyd.records import SCHEMA_VERSION, TABLES
from xpyd.schema_history import ADDED, RENAMED, Like

HEAD = f"""# Schema

The tables of a run folder, `<table>.parquet`, one row per event; made by `python -m analysis.schema > docs/schema.md`.
This is version {SCHEMA_VERSION}, which every file carries in its metadata (`schema_version`), and `DONE` too. No
column is ever null. A unit is the end of a name: `_s` seconds, `_ns` integer nanoseconds on the client's clock,
`_bytes`, `_rps` per second, `_gbps` Gbit/s. `block` is a comparison block, one stretch of one arm, and never a KV
block; it joins all tables of requests. While a run goes on, ranks append to Arrow streams in `streams/`, with the same
columns.

Runs of earlier versions load: what they lacked or called otherwise is at the end. Those of later versions are refused.
Results, rather than events, in tidy rows: `python -m analysis.pivot RUN... --by KEYS --format parquet --out FILE`.
"""
UNITS = {"_ns": "ns", "_s": "s", "_bytes": "bytes", "_rps": "1/s", "_gbps": "Gbit/s", "_nats": "nats"}


def document() -> str:
    """The whole document, with a final newline."""
    tables = [part for table, row_type in TABLES.items() for part in _table(table, row_type)]
    return "\n".join([HEAD, *tables, *_history()]) + "\n"


def _table(table: str, row_type: type) -> Iterator[str]:
    remarks = _remarks(row_type)
    yield f"## {table}\n"
    yield inspect.cleandoc(row_type.__doc__ or "").replace("``", "`") + "\n"
    yield "| column | type | unit | |"
    yield "|---|---|---|---|"
    for field in fields(row_type):
        unit = next((unit for end, unit in UNITS.items() if field.name.endswith(end)), "")
        yield f"| `{field.name}` | {field.type} | {unit} | {remarks.get(field.name, '')} |"
    yield ""


def _remarks(row_type: type) -> dict[str, str]:
    """Column -> the comment behind it in the source."""
    lines = re.findall(r"^    (\w+): [^#\n]+#\s*(.+)$", inspect.getsource(row_type), re.MULTILINE)
    return {name: remark.replace("|", "or") for name, remark in lines}


def _history() -> Iterator[str]:
    yield "## What earlier versions lacked\n"
    yield "| table | column | read as |"
    yield "|---|---|---|"
    for table, columns in ADDED.items():
        for column, value in columns.items():
            shown = f"that row's `{value.column}`" if isinstance(value, Like) else f"`{value!r}`"
            yield f"| {table} | `{column}` | {shown} |"
    for table, names in RENAMED.items():
        for old, new in names.items():
            yield f"| {table} | `{new}` | what was called `{old}` |"
    yield "\nTables that an earlier version did not have are empty."


if __name__ == "__main__":
    print(document(), end="")
