"""The tables of the KV cache experiment by hand: hits, prefill seconds less what decodes take, gaps, bytes, tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import kv_cache
from analysis.load import RunError, load_run
from tests.analysis.synthetic import Way, block_rows, write_run
from xpyd.records import CacheRow, StepRow, TierRow, TokenRow

MS = 1_000_000


def step(block: int, length_ms: int, num_prefill_tokens: int, num_decode_seqs: int) -> StepRow:
    return StepRow(
        block, 1, "colocated", 0, length_ms * MS, num_prefill_tokens, min(1, num_prefill_tokens), num_decode_seqs,
        0, 0, 0, 0, 0,
    )  # fmt: skip


def block(number: int, repeat: int, arm: str) -> list[Any]:
    """Without a cache 400 tokens take 400 ms beside decodes; with it 100 tokens take 100 ms, and gaps are longer."""
    cached = arm != "none"
    way = Way(prefill=50, gaps=(12,) * 3 if cached else (10,) * 3)
    rows = [row for row in block_rows(number, repeat, arm, [(200, way)] * 2) if not isinstance(row, StepRow)]
    rows += [step(number, 10, 0, 2), step(number, 10, 0, 2)]
    if not cached:
        return [*rows, step(number, 410, 400, 2)]
    rows += [step(number, 110, 100, 2)]
    rows += [CacheRow(number, i, 1, "colocated", 0, 200, 150, 64, 16, 0) for i in range(2)]
    rows += [TierRow(number, 1, way, 1024) for way in ("pool host", "host pool", "put", "fetched", "here")]
    return rows


def made(num_repeats: int = 5) -> list[Any]:
    arms = ("none", "remote lru")
    return [row for r in range(num_repeats) for n, arm in enumerate(arms) for row in block(2 * r + n, r, arm)]


def test_savings_by_hand(tmp_path: Path) -> None:
    results = kv_cache.analyse(load_run(write_run(tmp_path / "run", made(), {"experiment": "kv_cache"})))
    saving, latency, traffic = results.tables
    assert list(saving.rows) == [
        ("none", "0 %", "400 ms", "", "", ""),
        ("remote lru", "75 %", "100 ms", "300 [300, 300] ms", "4x", "4x"),
    ]
    assert latency.rows[1][-2:] == ("12 ms", "1.20x ABOVE")
    assert list(traffic.rows) == [("remote lru", "35 %", "32 %", "8 %", "2 KiB", "2 KiB")]
    assert results.answer == "At best 4 times less prefill time, with remote lru."
    assert "does not reach the 5 to 10 times" in results.because
    assert saving.notes[1] == "Every request has the tokens that it has without a cache."
    assert results.frame["saved_s"].tolist()[1] == pytest.approx(0.3)


def test_other_tokens_are_counted(tmp_path: Path) -> None:
    rows = [
        replace(row, token_id=row.token_id + 1)
        if isinstance(row, TokenRow) and (row.block, row.index) == (1, 0)
        else row
        for row in made()
    ]
    results = kv_cache.analyse(load_run(write_run(tmp_path / "run", rows, {"experiment": "kv_cache"})))
    assert results.tables[0].notes[1].startswith("2 requests have other tokens")


def test_a_run_with_nothing_to_hold_a_cache_against_is_refused(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", block(0, 0, "pool lru"), {"experiment": "kv_cache"}))
    with pytest.raises(RunError, match="no blocks with and without a cache"):
        kv_cache.analyse(run)


def test_decodes_beside_a_prompt_are_not_prefill() -> None:
    steps = pd.DataFrame([step(0, 10, 0, 2), step(0, 14, 0, 2), step(0, 50, 64, 2), step(0, 30, 64, 0)])
    assert kv_cache.prefill_seconds(steps).tolist() == pytest.approx([0, 0, 0.038, 0.030])
