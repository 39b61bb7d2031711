"""Break-even maps: the class of a planted cell, the frozen file, and what a simulated block says in figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xpyd.break_even_grid import BreakEvenConfig
from xpyd.economics.break_even import SPLIT, STAY, UNDECIDED, answer, judge, paired_interval, prediction_half_width
from xpyd.economics.frozen import FrozenError, content_hash, read_sealed, sealed
from xpyd.economics.ledger import ArmTimes, Ledger
from xpyd.economics.verdict import Interval
from xpyd.records import StageRow, TokenRow
from xpyd.simulate.figures import StampSink

MS = 1_000_000
AXES = {"links_gbps": (10.0, 1.0), "input_lens": (64, 32), "rates_rps": (2.0,), "output_lens": (8,)}


def ledgers(*values: tuple[float, float, float]) -> list[Ledger]:
    return [Ledger(bill_s=bill, win_s=win, pools_s=pools) for bill, win, pools in values]


def test_the_mean_of_more_values_is_off_by_what_the_known_ones_scatter() -> None:
    """Values 1 and 3: standard deviation 1.414, t of one degree of freedom 12.706, and 1/2 + 1/2 under the root."""
    assert prediction_half_width([1.0, 3.0], 2) == pytest.approx(12.7062 * 2**0.5, rel=1e-5)
    assert prediction_half_width([2.0, 2.0, 2.0], 1) == 0.0


def test_the_interval_of_paired_differences_is_students() -> None:
    found = paired_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    # t(4 degrees of freedom, 97.5 %) = 2.776, standard deviation 1.5811, over the root of 5.
    assert found.mid == 3.0
    assert (found.low, found.high) == pytest.approx((3 - 1.9632, 3 + 1.9632), abs=1e-3)
    assert not paired_interval([1.0, 2.0, 3.0, 4.0]).known, "four pairs carry no interval"


@pytest.mark.parametrize(
    ("win", "bill", "band", "expected"),
    [
        (0.10, 0.02, 0.0, SPLIT),
        (0.10, 0.02, 0.5, SPLIT),  # 80 ms saved, off by 50 ms at most
        (0.10, 0.07, 0.5, UNDECIDED),  # 30 ms are within the error
        (0.10, 0.07, 0.2, SPLIT),
        (0.02, 0.10, 0.5, STAY),
        (0.07, 0.10, 0.5, UNDECIDED),
        (0.05, 0.05, 0.0, UNDECIDED),
    ],
)
def test_a_cell_is_decided_where_the_saving_exceeds_the_known_error(
    win: float, bill: float, band: float, expected: str
) -> None:
    found = judge(ledgers(*[(bill, win, -1.0)] * 5), "ledger", band)
    assert found.answer == expected
    assert found.margin_s == pytest.approx(band * max(win, bill))
    assert found.saved.mid == pytest.approx(win - bill)


def test_pairs_that_disagree_leave_a_cell_undecided() -> None:
    wavering = ledgers(*[(0.0, win, 0.0) for win in (0.1, -0.1, 0.1, -0.1, 0.1)])
    assert judge(wavering, "ledger", 0.0).answer == UNDECIDED
    assert judge(ledgers(*[(0.0, 0.1, 0.0)] * 4), "ledger", 0.0).answer == UNDECIDED, "four pairs carry no interval"


def test_end_to_end_counts_the_pools_and_their_error() -> None:
    starved = ledgers(*[(0.02, 0.10, -0.5)] * 5)
    assert judge(starved, "ledger", 0.25).answer == SPLIT
    found = judge(starved, "net", 0.25)
    assert found.answer == STAY
    assert found.margin_s == pytest.approx(0.125)


def test_a_measured_interval_needs_no_margin() -> None:
    assert answer(Interval(0.01, 0.02, 0.03)) == SPLIT
    assert answer(Interval(-0.03, -0.02, -0.01)) == STAY
    assert answer(Interval(-0.01, 0.02, 0.03)) == UNDECIDED


def test_what_is_frozen_comes_back_and_a_change_is_told(tmp_path: Path) -> None:
    path = tmp_path / "prediction.json"
    content = sealed({"cells": [{"saved": 0.1}], "band": 0.25, "unknown": float("nan")})
    path.write_text(json.dumps(content, indent=2))
    assert read_sealed(path)["cells"] == [{"saved": 0.1}]
    assert content_hash(dict(reversed(content.items()))) == content["sha256"], "the order of keys says nothing"
    path.write_text(path.read_text().replace("0.25", "0.1"))
    with pytest.raises(FrozenError, match=r"prediction\.json: changed after it was frozen.*predict and measure anew"):
        read_sealed(path)
    path.write_text("{}")
    with pytest.raises(FrozenError, match="no frozen prediction; make one with"):
        read_sealed(path)
    with pytest.raises(FrozenError, match="cannot be read"):
        read_sealed(tmp_path / "nothing.json")


def test_the_map_has_every_combination_with_the_link_innermost() -> None:
    assert BreakEvenConfig(**AXES).points() == [
        (8, 2.0, 32, 1.0),
        (8, 2.0, 32, 10.0),
        (8, 2.0, 64, 1.0),
        (8, 2.0, 64, 10.0),
    ]
    with pytest.raises(ValueError, match=r"input_lens=\[64, 64\]: a value is there twice"):
        BreakEvenConfig(**{**AXES, "input_lens": (64, 64)})
    with pytest.raises(ValueError, match="at most 5000 are played"):
        BreakEvenConfig(**{**AXES, "input_lens": tuple(range(1, 4000))})


def test_a_simulated_block_in_figures_by_hand() -> None:
    sink = StampSink()
    for number, moved in ((0, True), (1, False)):
        at = {"arrived": 0, "prefill_begin": 10, "prefill_end": 30}
        at |= {"transfer_end": 45, "decode_admit": 50} if moved else {}
        for stage, t_ms in at.items():
            sink.write(StageRow(0, number, stage, 1, t_ms * MS))
        for index, t_ms in enumerate((30, 60, 80)):
            sink.write(TokenRow(0, number, index, 0, t_ms * MS, t_ms * MS, 1, 1.0))
    found = sink.figures(num_met=1, duration_s=0.5)
    # Of the first: exposed 15, admission 5, decode 30; of the second: 0, 0 and 50.
    assert found.times == ArmTimes(*(pytest.approx(s) for s in (0.010, 0.020, 0.0075, 0.0025, 0.040)))
    assert (found.ttft_p50_s, found.goodput_rps) == (pytest.approx(0.030), 2.0)
    assert (found.itl_p50_s, found.itl_p99_s) == (pytest.approx(0.025), pytest.approx(0.030))
