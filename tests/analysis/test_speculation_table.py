"""Speculation by hand: acceptance, step times, what changes per arm, and two ledgers of the same pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis import serve, speculation
from analysis.guesses import guessing_by_arm
from analysis.load import Run, RunError, load_run
from tests.analysis.synthetic import MS, Way, block_rows, write_run
from xpyd.records import SpeculationRow, StepRow

ARMS = {  # gaps: 8 tokens in 7 steps of 10 ms, or in 3 of 15 ms that yield 3, 3 and 1
    "colocated": Way(gaps=(10,) * 7),
    "colocated_speculative": Way(gaps=(15, 0, 0, 15, 0, 0, 15)),
    "disaggregated_speculative": Way(exposed=6, gaps=(12, 0, 0, 12, 0, 0, 12), moved=True),
    "disaggregated": Way(exposed=6, gaps=(8,) * 7, moved=True),
}
SETTINGS = {"draft": "ngram", "num_tokens": 2, "max_ngram": 3, "num_layers": None, "model": None}


def rows(num_pairs: int = 5, arms: tuple[str, ...] = tuple(ARMS)) -> list[Any]:
    made: list[Any] = []
    for pair in range(num_pairs):
        for place, arm in enumerate(arms):
            block = 4 * pair + place
            made += block_rows(block, pair, arm, [(100, ARMS[arm])] * 2)
            for step in range(3):
                begin = block * 1000 * MS + step * 20 * MS
                length = 15 if "speculative" in arm else 10
                made.append(StepRow(block, 2, "decode", begin, begin + length * MS, 0, 0, 2, 200, 50, 0, 0, 0))
                if "speculative" in arm:
                    # The first step is the draft's prefill as well, and counts for acceptance only.
                    first = step == 0
                    guessed, prefill_s, num_prefill = (0, 0.004, 200) if first else (4, 0.0, 0)
                    accepted = 0 if first else 3
                    made.append(SpeculationRow(block, 2, begin, 2, guessed, accepted, 0.003, prefill_s, num_prefill))
    return made


def run_of(folder: Path, made: list[Any]) -> Run:
    return load_run(write_run(folder / "run", made, {"experiment": "speculation", "speculation": SETTINGS}))


def test_guessing_by_hand(tmp_path: Path) -> None:
    colocated, split = guessing_by_arm(run_of(tmp_path, rows()))
    assert (colocated.arm, split.arm) == ("colocated_speculative", "disaggregated_speculative")
    assert split.acceptance == pytest.approx(0.75)
    assert split.tokens_per_step == pytest.approx(1 + 6 / 6)
    assert split.step_s == pytest.approx(0.015)
    assert split.plain_step_s == pytest.approx(0.010)
    assert split.gain == pytest.approx(2 * 10 / 15)
    assert split.draft_share == pytest.approx(3 / 15)
    assert split.draft_prefill_s == pytest.approx(0.002), "per request: 4 ms a block of two"


def test_two_ledgers_and_what_changes(tmp_path: Path) -> None:
    found = speculation.Speculation(run_of(tmp_path, rows()))
    changes = {(each.arm, each.quantity): each for each in found.changes}
    assert changes["colocated", "tpot_s mean"].without == pytest.approx(0.010)
    assert changes["colocated", "tpot_s mean"].with_guesses == pytest.approx(0.045 / 7)
    assert changes["disaggregated", "itl_s p50"].with_guesses == pytest.approx(0.012), "gaps of 0 are no waits"
    assert changes["disaggregated", "itl_s p50"].change.high == pytest.approx(0.004)
    lines = {each.quantity: each for each in found.ledgers}
    assert lines["bill_s"].without == lines["bill_s"].with_guesses == pytest.approx(0.006)
    # Decode ends 70 against 56 - 6 ms after DECODE_ADMIT, and 45 against 36 - 6: the way's tokens begin at PREFILL_END.
    assert lines["win_s"].without == pytest.approx(0.020)
    assert lines["win_s"].with_guesses == pytest.approx(0.015)
    assert lines["ledger_s"].change.mid == pytest.approx(-0.005)
    assert lines["breakeven_output_tokens"].without == pytest.approx(0), "tokens come no later at first"


def test_the_page_says_it_in_one_line(tmp_path: Path) -> None:
    results = speculation.analyse(run_of(tmp_path, rows()))
    assert results.answer == (
        "Of the guesses (ngram, 2 tokens) 75 % came true; time per output token -36% colocated and -36% disaggregated."
    )
    assert results.because.startswith("Of splitting: win 20 ms without, 15 ms with; bill 6 ms without, 6 ms with")
    split = results.tables[2].rows[-1]
    assert split[:3] == ("split?", "split", "split")
    traffic = {row[0]: row[1] for row in results.tables[3].rows}
    assert traffic["disaggregated_speculative"].startswith("ledger = transport")
    assert {row[1] for row in results.tables[4].rows} == {"same"}


def test_other_experiments_show_the_guessing_that_they_did(tmp_path: Path) -> None:
    made = rows(1, ("disaggregated_speculative",))
    run = load_run(write_run(tmp_path / "guessing", made, {"experiment": "serve", "speculation": SETTINGS}))
    titles = [table.title for table in serve.analyse(run).tables]
    assert any(title.startswith("Guessing by arm") for title in titles)
    plain = load_run(write_run(tmp_path / "plain", rows(1, ("disaggregated",)), {"experiment": "serve"}))
    assert not any(table.title.startswith("Guessing") for table in serve.analyse(plain).tables)


def test_a_run_without_all_four_arms_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no block pair has ended in all four arms"):
        speculation.analyse(run_of(tmp_path, rows(arms=("colocated", "disaggregated"))))
