"""Output invariance and byte counters: what must be caught, and what must never look validated."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.invariance import Invariance, check_invariance
from analysis.load import load_run
from analysis.requests import request_frame
from analysis.tokens import order_tokens
from analysis.traffic import Traffic
from tests.analysis.synthetic import Way, block_rows, write_run
from xpyd import metrics

SAME = Way(tokens=(5, 6, 7, 8))


@pytest.fixture(params=[3, metrics.PART], autouse=True)
def part(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are compared in parts: several, and one."""
    monkeypatch.setattr(metrics, "PART", request.param)


def check(folder: Path, second: list[Way], first: list[Way] | None = None) -> Invariance:
    first = first or [SAME] * len(second)
    rows = [
        *block_rows(0, 0, "colocated", [(100, way) for way in first]),
        *block_rows(1, 0, "disaggregated", [(100, way) for way in second]),
    ]
    run = load_run(write_run(folder / "r", rows))
    return check_invariance(run, request_frame(run), order_tokens(run), "colocated", "disaggregated")


def test_equal_tokens(tmp_path: Path) -> None:
    found = check(tmp_path, [SAME, SAME])
    assert (found.num_compared, found.num_equal, found.finding) == (2, 2, "same")
    assert found.divergences.empty


def test_a_divergence_at_a_clear_margin_is_different(tmp_path: Path) -> None:
    found = check(tmp_path, [SAME, Way(tokens=(5, 9, 7, 1), margins=(1, 0.5, 1, 1e-9))])
    assert (found.num_equal, found.num_rounding, found.num_different) == (1, 0, 1)
    assert found.finding == "DIFFERENT"
    row = found.divergences.iloc[0]
    assert (row["request_id"], row["index"], row["token_first"], row["token_second"]) == (1, 1, 6, 9)
    assert row["margin"] == 0.5, "the margin at the first divergence counts, not a later one"


def test_a_divergence_at_a_tiny_margin_is_rounding(tmp_path: Path) -> None:
    found = check(tmp_path, [SAME, Way(tokens=(5, 9, 0, 0), margins=(1, 9e-4, 1, 1))])
    assert (found.num_rounding, found.num_different, found.finding) == (1, 0, "same within rounding")


def test_a_missing_token_is_never_rounding(tmp_path: Path) -> None:
    found = check(tmp_path, [Way(tokens=(5, 6, 7), margins=(0, 0, 0), gaps=(10, 10))])
    assert found.num_different == 1
    assert found.divergences["index"].iloc[0] == 3


def test_requests_that_did_not_finish_in_both_arms_are_not_compared(tmp_path: Path) -> None:
    found = check(tmp_path, [Way(failed="x"), SAME], [SAME, Way(unfinished=True)])
    assert (found.num_compared, found.finding) == (0, "nothing to compare")


@pytest.mark.parametrize(
    ("ledger", "transport", "interface", "finding"),
    [
        (1000, 1000, 1040, "validated by all three (interfaces +4.0%)"),
        (0, 0, 0, "NOT validated: nothing was counted"),
        (1000, 0, 1000, "NOT validated: nothing was counted"),
        (1000, 999, 1000, "MISMATCH: ledger and transport differ"),
        (1000, 1000, -1, "ledger = transport; interface counters not readable for this route"),
        (1000, 1000, 900, "MISMATCH: interfaces saw 10.0% less"),
        (1000, 1000, 9000, "ledger = transport; interfaces carried 800% more (other traffic): not validated there"),
    ],
)
def test_findings_of_the_moving_arm(ledger: int, transport: int, interface: int, finding: str) -> None:
    assert Traffic("disaggregated", ledger, transport, interface).finding == finding


def test_a_colocated_arm_must_move_nothing() -> None:
    assert Traffic("colocated", 0, 0, 123).finding == "nothing moved"
    assert Traffic("null", 0, 8, -1).finding == "MISMATCH: bytes moved"
