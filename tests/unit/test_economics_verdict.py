"""The four answers, their edges, and the note on starved pools."""

from __future__ import annotations

from math import nan

import pytest

from xpyd.economics.verdict import Answer, Interval, decide, decide_modeled, exactly, pools_note

WIN = Interval(0.009, 0.010, 0.011)


@pytest.mark.parametrize(
    ("win", "ledger", "answer"),
    [
        (WIN, Interval(0.001, 0.002, 0.003), Answer.SPLIT),
        (WIN, Interval(-0.003, -0.002, -0.001), Answer.LINK_TOO_SLOW),
        (Interval(-0.003, -0.002, -0.001), Interval(-0.003, -0.002, -0.001), Answer.NO_INTERFERENCE),
        (Interval(-0.001, 0.001, 0.003), Interval(-0.003, -0.002, -0.001), Answer.NO_INTERFERENCE),
        (WIN, Interval(-0.001, 0.002, 0.005), Answer.UNDECIDED),
        (WIN, Interval(0.0, 0.002, 0.005), Answer.UNDECIDED),
        (WIN, Interval(-0.005, -0.002, 0.0), Answer.UNDECIDED),
        (WIN, Interval(nan, 0.002, nan), Answer.UNDECIDED),
    ],
)
def test_answers(win: Interval, ledger: Interval, answer: Answer) -> None:
    verdict = decide(win, exactly(0.008), ledger, num_blocks=5)
    assert verdict.answer is answer
    assert verdict.because


@pytest.mark.parametrize("num_blocks", [0, 1, 4])
def test_fewer_than_five_pairs_decide_nothing(num_blocks: int) -> None:
    verdict = decide(WIN, exactly(0.001), exactly(0.009), num_blocks)
    assert verdict.answer is Answer.UNDECIDED
    assert str(num_blocks) in verdict.because
    assert "num_pairs" in verdict.because


def test_because_gives_the_numbers() -> None:
    verdict = decide(WIN, exactly(0.050), Interval(-0.043, -0.040, -0.037), num_blocks=5)
    assert verdict.because == (
        "splitting loses 40 ms (37 ms to 43 ms) per request: the bill of 50 ms exceeds the win of 10 ms (9 ms to 11 ms)"
    )


@pytest.mark.parametrize(
    ("win_s", "bill_s", "answer"),
    [
        (0.02, 0.01, Answer.SPLIT),
        (0.01, 0.02, Answer.LINK_TOO_SLOW),
        (0.0, 0.02, Answer.NO_INTERFERENCE),
        (0.01, 0.01, Answer.UNDECIDED),
    ],
)
def test_modeled_points_have_no_width(win_s: float, bill_s: float, answer: Answer) -> None:
    assert decide_modeled(win_s, bill_s).answer is answer


@pytest.mark.parametrize(
    ("answer", "net", "word"),
    [
        (Answer.SPLIT, Interval(-0.3, -0.2, -0.1), "loses 200 ms (100 ms to 300 ms)"),
        (Answer.LINK_TOO_SLOW, Interval(0.1, 0.2, 0.3), "saves 200 ms (100 ms to 300 ms)"),
        (Answer.SPLIT, Interval(0.1, 0.2, 0.3), ""),
        (Answer.SPLIT, Interval(-0.1, 0.2, 0.3), ""),
        (Answer.NO_INTERFERENCE, Interval(-0.3, -0.2, -0.1), ""),
        (Answer.UNDECIDED, Interval(-0.3, -0.2, -0.1), ""),
        (Answer.SPLIT, Interval(nan, -0.2, nan), ""),
    ],
)
def test_pools_note_only_where_end_to_end_disagrees(answer: Answer, net: Interval, word: str) -> None:
    note = pools_note(net, answer)
    assert word in note
    assert bool(note) == bool(word)
