"""Streams of several attempts: which rows count, what is done already, and torn tails that cost only themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xpyd.records import SCHEMA_VERSION, BlockRow, GapRow, RequestRow, TokenRow
from xpyd.run_dir import RowWriter, RunDir
from xpyd.streams import SchemaVersionError, arrow_schema, attempts, completed_blocks, merge


def ended(block: int) -> BlockRow:
    return BlockRow(block, block, "colocated", 0, 1, 1, 0, 0, 0, -1)


def begun(block: int) -> RequestRow:
    return RequestRow(block, block, "colocated", 0, "default", 1, 1, 0)


def token(block: int, token_id: int) -> TokenRow:
    return TokenRow(block, 0, 0, token_id, 0, 0, 1, 0.0)


def write(folder: Path, attempt: int, rank: int, *batches: list[Any]) -> None:
    (folder / "streams").mkdir(exist_ok=True)
    with RowWriter(RunDir(folder, attempt), rank) as rows:
        for batch in batches:
            for row in batch:
                rows.write(row)
            rows.flush()


def tokens(folder: Path) -> list[tuple[int, int]]:
    table = merge(folder, "tokens")
    return list(zip(table["block"].to_pylist(), table["token_id"].to_pylist(), strict=True))


def test_a_block_counts_once_from_the_attempt_that_ended_it(tmp_path: Path) -> None:
    write(tmp_path, 0, 0, [begun(0), token(0, 10)], [ended(0)], [begun(1), token(1, 11)])
    write(tmp_path, 1, 0, [begun(1), token(1, 21)], [ended(1)], [begun(2), token(2, 22)])
    write(tmp_path, 2, 0, [begun(2), token(2, 32)])
    assert attempts(tmp_path) == [0, 1, 2]
    assert completed_blocks(tmp_path) == {0: 0, 1: 1}
    assert tokens(tmp_path) == [(0, 10), (1, 21), (2, 32)], "block 2 did not end: its last attempt tells"
    assert merge(tmp_path, "requests")["block"].to_pylist() == [0, 1, 2]
    assert merge(tmp_path, "blocks")["block"].to_pylist() == [0, 1]


def test_a_block_that_has_ended_is_not_won_by_a_later_try(tmp_path: Path) -> None:
    """A node saw an old state of a shared file system, and its attempt played block 0 again."""
    write(tmp_path, 0, 0, [begun(0), token(0, 10), ended(0)])
    write(tmp_path, 1, 0, [begun(0), token(0, 20)])
    assert tokens(tmp_path) == [(0, 10)]
    write(tmp_path, 2, 0, [begun(0), token(0, 30), ended(0)])
    assert tokens(tmp_path) == [(0, 10)]
    assert len(merge(tmp_path, "blocks")) == 1


def test_rows_of_all_ranks_follow_the_attempt_of_rank_0(tmp_path: Path) -> None:
    write(tmp_path, 0, 0, [begun(0)])
    write(tmp_path, 0, 1, [token(0, 10)])
    write(tmp_path, 1, 0, [begun(0), ended(0)])
    write(tmp_path, 1, 1, [token(0, 20)])
    assert tokens(tmp_path) == [(0, 20)]


def test_an_attempt_that_left_nothing_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, 0, 0, [begun(0), token(0, 10)])
    (tmp_path / "streams" / "steps.attempt1.rank1.arrow").touch()  # killed before the header was written
    assert tokens(tmp_path) == [(0, 10)]


def test_tables_without_blocks_keep_their_last_attempt(tmp_path: Path) -> None:
    write(tmp_path, 0, 1, [GapRow(0, 1, 0, 0, 0.1), GapRow(0, 1, 0, 1, 0.1)])
    write(tmp_path, 1, 1, [GapRow(0, 1, 0, 0, 0.2)])
    assert merge(tmp_path, "gaps")["gap_s"].to_pylist() == [0.2]


@pytest.mark.parametrize("cut", [1, 40, 400])
def test_a_torn_batch_loses_itself_alone(tmp_path: Path, cut: int) -> None:
    """The attempt was killed while it wrote: what it wrote before and what came after count."""
    write(tmp_path, 0, 0, [begun(0), token(0, 10)], [ended(0), token(0, 11)], [begun(1), token(1, 12)])
    stream = tmp_path / "streams" / "tokens.attempt0.rank0.arrow"
    stream.write_bytes(stream.read_bytes()[: -8 - cut])  # 8: the end-of-stream mark
    write(tmp_path, 1, 0, [begun(1), token(1, 22), ended(1)])
    assert tokens(tmp_path) == [(0, 10), (0, 11), (1, 22)]


def test_a_resumed_run_ends_as_one(tmp_path: Path) -> None:
    write(tmp_path, 0, 0, [begun(0), token(0, 10)], [ended(0)], [begun(1), token(1, 11)])
    run_dir = RunDir(tmp_path)
    assert run_dir.next_attempt() == 1
    assert run_dir.completed_blocks() == {0}
    write(tmp_path, 1, 0, [begun(1), token(1, 21), ended(1)])
    run_dir.finish()
    assert run_dir.done
    assert not (tmp_path / "streams").exists()


def test_a_later_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 0, 0, [begun(0)])
    arrow_schema.cache_clear()
    monkeypatch.setattr("xpyd.streams.SCHEMA_VERSION", SCHEMA_VERSION - 1)
    try:
        with pytest.raises(SchemaVersionError, match="written with schema version"):
            merge(tmp_path, "requests")
    finally:
        arrow_schema.cache_clear()
