"""The ledger of hand-made runs, worked out by hand: every line, the verdicts, misses, prediction and null control."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.compare_tables import ledger_table
from analysis.ledger import OVERALL, Comparison
from analysis.load import RunError, load_run
from analysis.tables import checks_table
from tests.analysis.synthetic import CONFIG, Way, block_rows, write_run
from xpyd.economics.verdict import Answer

# Colocated: 10 + 20 + 30 = 60 ms. Split: 14 + 22 + 6 + 2, then 28 ms from token 0 on, of which 8 pass in the hand-off:
# decode 20, end to end 64 ms. Bill 8, win 10, ledger 2, pools -6, net -4 ms.
COLOCATED = Way(queue=10, prefill=20, gaps=(10, 10, 10))
SPLIT = Way(queue=14, prefill=22, exposed=6, admission=2, gaps=(16, 6, 6), moved=True)
TIMES = ("queue_s", "prefill_s", "exposed_transfer_s", "admission_s", "decode_s")
Ways = list[tuple[int, Way]]


def comparison(
    folder: Path,
    num_pairs: int,
    colocated: Callable[[int], Ways],
    split: Callable[[int], Ways],
    null: Callable[[int], Ways] | None = None,
    predicted: dict[str, Any] | None = None,
) -> Comparison:
    rows: list[Any] = []
    for pair in range(num_pairs):
        rows += block_rows(3 * pair, pair, "colocated", colocated(pair))
        rows += block_rows(3 * pair + 1, pair, "disaggregated", split(pair))
        rows += block_rows(3 * pair + 2, pair, "null", null(pair)) if null else []
    return Comparison(load_run(write_run(folder / "r", rows, predicted=predicted)))


def both(way: Way) -> Callable[[int], Ways]:
    return lambda pair: [(100, way), (600, way)]


@pytest.mark.parametrize("length", ["all", "1-128", "513-2048"])
def test_every_line_by_hand(tmp_path: Path, length: str) -> None:
    found = comparison(tmp_path, 5, both(COLOCATED), both(SPLIT), both(COLOCATED))
    expected = {
        "queue_s": 0.004,
        "prefill_s": 0.002,
        "exposed_transfer_s": 0.006,
        "admission_s": 0.002,
        "decode_s": -0.010,
        "bill_s": 0.008,
        "win_s": 0.010,
        "ledger_s": 0.002,
        "pools_s": -0.006,
        "net_s": -0.004,
        "ttft_s p50": 0.006,
        "ttft_decode_s p50": 0.014,
        "itl_s max": 0.006,
        "itl_s p50": -0.004,
        "e2e_s mean": 0.004,
        "penalty_ratio": 6 / 22,
        "overlap": 1 - 6 / 27,
        "attainment": 0.0,
    }
    for quantity, value in expected.items():
        line = found.line(length, quantity)
        assert line.measured.mid == pytest.approx(value, abs=1e-9), quantity
        assert (line.measured.low, line.measured.high) == pytest.approx((value, value), abs=1e-9)
    assert found.line(length, "ttft_s p50").colocated == pytest.approx(0.030)
    assert found.line(length, "ttft_s p50").disaggregated == pytest.approx(0.036)
    # TTFT grows by 6 ms and the mean gap shrinks by 2/3 ms: even after 9 tokens.
    assert found.line(length, "breakeven_output_tokens").measured.mid == pytest.approx(9)


def test_lines_are_means_over_pairs(tmp_path: Path) -> None:
    def slower(pair: int) -> Ways:
        return both(Way(queue=10, prefill=20, gaps=(10 + pair, 10, 10)))(pair)

    found = comparison(tmp_path, 5, slower, both(SPLIT))
    win = found.line("all", "win_s").measured
    assert win.mid == pytest.approx(0.012)
    assert 0.010 <= win.low < 0.012 < win.high <= 0.014
    assert list(found.sides("all").ledgers()["win_s"]) == pytest.approx([0.010, 0.011, 0.012, 0.013, 0.014])


def test_net_is_what_end_to_end_time_says(tmp_path: Path) -> None:
    found = comparison(tmp_path, 5, both(COLOCATED), both(SPLIT))
    assert found.line("all", "net_s").measured.mid == pytest.approx(-found.line("all", "e2e_s mean").measured.mid)


@pytest.mark.parametrize(
    ("split", "answer"),
    [
        (SPLIT, Answer.SPLIT),
        (Way(exposed=30, admission=2, gaps=(40, 6, 6), moved=True), Answer.LINK_TOO_SLOW),
        (Way(exposed=6, admission=2, gaps=(18, 13, 13), moved=True), Answer.NO_INTERFERENCE),
    ],
)
def test_three_answers(tmp_path: Path, split: Way, answer: Answer) -> None:
    for verdict in comparison(tmp_path, 5, both(COLOCATED), both(split)).verdicts:
        assert verdict.verdict.answer is answer


def test_a_starved_pool_is_noted_beside_a_split(tmp_path: Path) -> None:
    overall = comparison(tmp_path, 5, both(COLOCATED), both(SPLIT)).verdicts[0]
    assert overall.verdict.answer is Answer.SPLIT
    assert "starves a pool" in overall.pools_note


def test_four_pairs_are_undecided(tmp_path: Path) -> None:
    found = comparison(tmp_path, 4, both(COLOCATED), both(SPLIT))
    assert found.verdicts[0].verdict.answer is Answer.UNDECIDED
    assert np.isnan(found.line("all", "win_s").measured.low)


def test_pairs_that_disagree_are_undecided(tmp_path: Path) -> None:
    def wavering(pair: int) -> Ways:
        return both(Way(exposed=6, admission=2, gaps=(16 + 4 * (pair - 2), 7, 7), moved=True))(pair)

    assert comparison(tmp_path, 5, both(COLOCATED), wavering).verdicts[0].verdict.answer is Answer.UNDECIDED


def test_failed_and_unfinished_requests_are_misses_and_leave_the_times_alone(tmp_path: Path) -> None:
    def split(pair: int) -> Ways:
        return [(100, SPLIT), (100, SPLIT), (100, Way(failed="no room")), (100, Way(unfinished=True))]

    found = comparison(tmp_path, 5, lambda pair: [(100, COLOCATED)] * 4, split)
    attainment, goodput = found.line("all", "attainment"), found.line("all", "goodput_rps")
    assert (attainment.colocated, attainment.disaggregated) == (1.0, 0.5)
    assert (goodput.colocated, goodput.disaggregated) == pytest.approx((4.0, 2.0))  # blocks of one second
    assert found.line("all", "goodput_rps per rank").disaggregated == pytest.approx(1.0)
    assert found.line("all", "bill_s").measured.mid == pytest.approx(0.008)


def test_one_long_gap_misses_the_limit(tmp_path: Path) -> None:
    stalled = Way(gaps=(10, 51, 10))
    found = comparison(tmp_path, 5, lambda pair: [(100, stalled), (100, COLOCATED)], both(SPLIT))
    assert found.line("all", "attainment").colocated == 0.5


def test_times_compare_the_same_requests(tmp_path: Path) -> None:
    """The request that only one arm finished is slow there; it must not count as that arm's loss."""
    slow = Way(queue=500, prefill=900)
    found = comparison(
        tmp_path, 5, lambda pair: [(100, COLOCATED), (100, slow)], lambda pair: [(100, SPLIT), (100, Way(failed="x"))]
    )
    assert found.line("all", "pools_s").measured.mid == pytest.approx(-0.006)


def test_a_block_that_did_not_end_leaves_its_pair_out(tmp_path: Path) -> None:
    rows = [
        *block_rows(0, 0, "colocated", both(COLOCATED)(0)),
        *block_rows(1, 0, "disaggregated", both(SPLIT)(0)),
        *block_rows(2, 1, "disaggregated", both(SPLIT)(0)),
        *block_rows(3, 1, "colocated", [(100, Way(queue=9000))], ended=False),
    ]
    found = Comparison(load_run(write_run(tmp_path / "r", rows)))
    assert found.line("all", "win_s").num_pairs == 1
    assert found.line("all", "queue_s").colocated == pytest.approx(0.010)


def test_no_complete_pair_is_an_error(tmp_path: Path) -> None:
    rows = block_rows(0, 0, "colocated", both(COLOCATED)(0))
    with pytest.raises(RunError, match="no block pair has ended in both arms"):
        Comparison(load_run(write_run(tmp_path / "r", rows)))


def test_the_prediction_and_its_error(tmp_path: Path) -> None:
    def arms(scale: float) -> dict[str, Any]:
        return {
            "colocated": dict(zip(TIMES, (0.01, 0.02, 0, 0, 0.03 * scale), strict=True)),
            "disaggregated": dict(zip(TIMES, (0.014, 0.022, 0.003, 0.001, 0.02 * scale), strict=True)),
        }

    predicted = {"1-128": arms(1), "513-2048": arms(3)}
    ways = [(100, COLOCATED), (100, COLOCATED), (100, COLOCATED), (600, COLOCATED)]
    split = [(n, SPLIT) for n, _ in ways]
    found = comparison(tmp_path, 5, lambda pair: ways, lambda pair: split, predicted=predicted)
    bill = found.line("1-128", "bill_s")
    assert bill.modeled == pytest.approx(0.004)
    assert bill.error_pct == pytest.approx(-50)
    assert found.line("513-2048", "win_s").modeled == pytest.approx(0.030)
    assert found.line("all", "win_s").modeled == pytest.approx(0.75 * 0.010 + 0.25 * 0.030)
    assert found.line("1-128", "queue_s").modeled == pytest.approx(0.004)


def test_a_class_that_was_not_predicted_has_no_model(tmp_path: Path) -> None:
    lines = dict.fromkeys(TIMES, 0.01)
    predicted = {"1-128": {"colocated": lines, "disaggregated": lines}}
    found = comparison(tmp_path, 5, both(COLOCATED), both(SPLIT), predicted=predicted)
    assert found.line("1-128", "win_s").modeled == pytest.approx(0)
    assert np.isnan(found.line("513-2048", "win_s").modeled)
    assert np.isnan(found.line("all", "win_s").modeled)


def test_the_null_control_is_the_same_statistic_on_the_same_arm_twice(tmp_path: Path) -> None:
    drifted = Way(queue=10, prefill=20, gaps=(11, 11, 11))
    same = comparison(tmp_path / "same", 5, both(COLOCATED), both(SPLIT), both(COLOCATED))
    assert same.line("all", "net_s").null.mid == pytest.approx(0, abs=1e-12)
    off = comparison(tmp_path / "off", 5, both(COLOCATED), both(SPLIT), both(drifted))
    assert off.line("all", "win_s").null.mid == pytest.approx(-0.003)
    assert off.line("all", "itl_s p50").null.mid == pytest.approx(0.001)
    without = comparison(tmp_path / "without", 5, both(COLOCATED), both(SPLIT))
    assert np.isnan(without.line("all", "net_s").null.mid)


def test_what_the_cost_model_does_not_know_is_said_in_the_table(tmp_path: Path) -> None:
    def notes(name: str, **changes: Any) -> str:
        rows = block_rows(0, 0, "colocated", [(100, COLOCATED)]) + block_rows(1, 0, "disaggregated", [(100, SPLIT)])
        run = load_run(write_run(tmp_path / name, rows, changes))
        return " ".join(ledger_table(Comparison(run), OVERALL).notes)

    assert "Modeled: nothing; the cost model knows no wait for a static batch" in notes(
        "static", scheduler={"policy": "static"}
    )
    assert "instances of one rank" in notes("wide", placement={**CONFIG["placement"], "decode_tp": 2})
    assert "Modeled" not in notes("chunked")


@pytest.mark.parametrize(("error_ns", "words"), [(0, "shared one clock"), (2000, "at most 2 us")])
def test_the_error_of_the_clocks_is_printed(tmp_path: Path, error_ns: int, words: str) -> None:
    found = comparison(tmp_path, 1, both(COLOCATED), both(SPLIT))
    found.run.tables["blocks"]["clock_error_ns"] = error_ns
    assert words in checks_table(found.run, found.requests).notes[0]
