"""The documented schema is the one that is written."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from analysis.schema import document
from xpyd.records import TABLES

ROOT = Path(__file__).parents[2]


def test_the_document_is_up_to_date() -> None:
    assert (ROOT / "docs/schema.md").read_text() == document(), "run: python -m analysis.schema > docs/schema.md"


def test_every_table_and_column_is_in_it() -> None:
    sections = {part.splitlines()[0]: part for part in document().split("\n## ")[1:]}
    for table, row_type in TABLES.items():
        listed = [line.split("`")[1] for line in sections[table].splitlines() if line.startswith("| `")]
        assert listed == [field.name for field in fields(row_type)]
