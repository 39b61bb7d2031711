"""The page of a plan, by hand: who comes first, what it costs, whether to split, where that turns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import plan
from analysis.load import Run, RunError, load_run
from tests.analysis.synthetic import write_run
from xpyd.records import PlanRow

CONFIG = {
    "experiment": "plan",
    "prices": {"currency": "EUR", "prefill_rank_hour": 3.6, "decode_rank_hour": 1.8, "colocated_rank_hour": 1.8},
    "search": {"attainment": 0.9, "num_repeats": 5},
    "plan": {"num_ranks": 2, "codecs": [], "codec_run": None, "hybrid": False},
}


def rows(candidate: str, counts: tuple[int, int, int], holds: float, axis: str = "", value: float = 0.0) -> list[Any]:
    """A candidate that meets all limits at ``holds`` requests per second, and none at twice that."""
    num_prefill, num_decode, num_colocated = counts
    what = (candidate, num_prefill, 1, num_decode, 1, num_colocated, 1, "layerwise" if num_prefill else "")
    hybrid = candidate.endswith("hybrid")
    moved = (0.25, 300.0) if hybrid else (float(num_prefill > 0), np.nan)
    return [
        PlanRow(*what, "", hybrid, axis, value, rate, repeat, share, rate * share, 10 * rate * share, 0.1, 0.01, *moved)
        for repeat in range(5)
        for rate, share in ((holds, 1.0), (2 * holds, 0.0))
    ]


def run_of(folder: Path, made: list[Any]) -> Run:
    return load_run(write_run(folder / "run", made, CONFIG, {"labels": ["modeled", "data sheet"]}))


def test_the_best_way_its_price_and_where_the_answer_turns(tmp_path: Path) -> None:
    made = rows("2C", (0, 0, 2), 10) + rows("1P1D layerwise", (1, 1, 0), 20)
    made += rows("2C", (0, 0, 2), 10, "link_gbps", 1.0) + rows("1P1D layerwise", (1, 1, 0), 5, "link_gbps", 1.0)
    made += rows("2C", (0, 0, 2), 10, "link_gbps", 10.0) + rows("1P1D layerwise", (1, 1, 0), 20, "link_gbps", 10.0)
    results = plan.analyse(run_of(tmp_path, made))
    # 200 tokens a second at 5.4 EUR an hour are 7.5 EUR a million; 100 at 3.6 are 10. 20 * 2^0.1 = 21.4.
    assert results.answer == (
        "Split: 1P1D layerwise sustains 21.4 [21.4, 21.4] /s, 2 [2, 2] times 2C (10.7 [10.7, 10.7] /s); 7.5 [7.5, 7.5] "
        "against 10 [10, 10] per million tokens."
    )
    assert results.tone == "split"
    assert (
        "By link it turns between 1 and 10 Gb/s (even at about 3.16 Gb/s) from do not split to split."
        in results.because
    )
    assert "By rate: up to 10.7 [10.7, 10.7] /s both hold, from there to 21.4" in results.because
    assert "/s only 1P1D layerwise, above neither." in results.because
    assert results.tables[0].rows[0][3:] == ("20 [20, 20] /s", "7.5 [7.5, 7.5]")
    assert "Not weighed: codecs (plan.codecs, plan.codec_run), hybrid routing" in results.tables[0].notes[2]
    assert [row[0] for row in results.tables[0].rows] == ["1P1D layerwise", "2C"]
    assert "simulated [modeled, data sheet]" in results.tables[0].title


def test_not_splitting_is_an_answer_and_so_is_a_tie(tmp_path: Path) -> None:
    stay = plan.analyse(run_of(tmp_path / "a", rows("2C", (0, 0, 2), 20) + rows("1P1D layerwise", (1, 1, 0), 10)))
    assert stay.answer.startswith("Do not split: 1P1D layerwise sustains 10.7")
    assert stay.tone == "stay"
    tie = plan.analyse(run_of(tmp_path / "b", rows("2C", (0, 0, 2), 20) + rows("1P1D layerwise", (1, 1, 0), 20)))
    assert tie.answer.startswith("Tie: ")
    assert tie.tone == "open"


def test_who_never_gives_way_has_no_answer(tmp_path: Path) -> None:
    made = rows("2C", (0, 0, 2), 20) + [row for row in rows("1P1D layerwise", (1, 1, 0), 10) if row.attainment == 1]
    assert plan.analyse(run_of(tmp_path, made)).answer.startswith("No answer: 1P1D layerwise never gave way")


def test_hybrid_ranks_have_the_colocated_price_and_tell_who_moved(tmp_path: Path) -> None:
    results = plan.analyse(run_of(tmp_path, rows("2C", (0, 0, 2), 10) + rows("1P1D layerwise hybrid", (1, 1, 0), 20)))
    # 200 tokens a second at 3.6 EUR an hour are 5 EUR a million.
    assert results.tables[0].rows[0][4] == "5 [5, 5]"
    told = "1P1D layerwise hybrid: 25 % of the requests move, by and large prompts of 300 tokens and more."
    assert told in results.tables[0].notes


def test_a_hybrid_way_in_which_nobody_moves_is_no_split(tmp_path: Path) -> None:
    made = rows("2C", (0, 0, 2), 10) + rows("1P1D layerwise", (1, 1, 0), 5)
    stays = [replace(row, moved_share=0.0, threshold_tokens=np.nan) for row in rows("1P1D hybrid", (1, 1, 0), 20)]
    results = plan.analyse(run_of(tmp_path, made + stays))
    assert results.answer.startswith("Do not split: 1P1D layerwise sustains")
    assert "1P1D hybrid: every request stays, by its cost." in results.tables[0].notes


def test_nothing_played_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no candidate was played"):
        plan.analyse(run_of(tmp_path, []))
