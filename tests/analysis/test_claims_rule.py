"""The rule by which a claim is judged, and the registry: which claims there are, and what they need to be measured."""

from __future__ import annotations

from math import inf, nan

import pytest

from analysis.claims.claim import Claimed, Judgement, combine, judge
from analysis.claims.measurements import measured_cut, measured_ratio
from analysis.claims.registry import all_claims, chosen, measurements, plan
from analysis.load import RunError
from xpyd.economics.verdict import Interval

HOLDS, FAILS, UNDECIDED, UNMEASURABLE = Judgement
EITHER, MORE, LESS = (Claimed(2, 4, "2 to 4", beyond) for beyond in ("neither", "above", "below"))


@pytest.mark.parametrize(
    ("low", "high", "claimed", "found"),
    [
        (2.5, 3.5, EITHER, HOLDS),
        (2.0, 4.0, EITHER, HOLDS),  # the ends belong to the range
        (4.1, 9.0, EITHER, FAILS),
        (4.1, 9.0, MORE, HOLDS),  # more than was claimed
        (4.1, 9.0, LESS, FAILS),
        (0.5, 1.9, LESS, HOLDS),
        (0.5, 1.9, MORE, FAILS),
        (0.5, 1.9, EITHER, FAILS),
        (1.9, 2.1, EITHER, UNDECIDED),
        (3.9, 4.1, EITHER, UNDECIDED),
        (3.9, 4.1, MORE, HOLDS),
        (1.0, 9.0, EITHER, UNDECIDED),
        (nan, nan, EITHER, UNDECIDED),
        (1.0, 1e9, Claimed(1, inf, "over 1"), HOLDS),
    ],
)
def test_the_interval_against_the_range(low: float, high: float, claimed: Claimed, found: Judgement) -> None:
    assert judge(Interval(low, (low + high) / 2, high), claimed) is found


def test_one_part_that_does_not_hold_decides() -> None:
    assert combine([HOLDS, UNMEASURABLE, FAILS]) is FAILS
    assert combine([HOLDS, UNDECIDED, UNMEASURABLE]) is UNMEASURABLE
    assert combine([HOLDS, UNDECIDED]) is UNDECIDED
    assert combine([HOLDS, HOLDS]) is HOLDS


def test_every_claim_of_the_plan_is_there_once() -> None:
    claims = all_claims()
    names = [claim.name for claim in claims]
    assert len(names) == len(set(names)) == 16
    for claim in claims:
        assert claim.needs, claim.name
        assert len({part.unit for part in claim.parts}) == 1, f"{claim.name}: its parts share one axis"


def test_measurements_are_shared_and_come_behind_what_they_use() -> None:
    claims = all_claims()
    names = [each.name for each in measurements(claims)]
    assert len(names) == len(set(names)) < sum(len(claim.needs) for claim in claims)
    assert names.index("rival") < min(names.index("compare"), names.index("saturation"))
    assert "rival" not in [each.name for each in measurements(claims, quick=True)]


def test_a_plan_names_who_reads_what() -> None:
    found = plan(chosen(["ttft", "tail_latency"], all_claims()), quick=True)["measurements"]
    assert [(each["name"], each["claims"]) for each in found] == [("compare", ["tail_latency", "ttft"])]
    assert found[0]["overrides"][-1] == "workload.num_requests=16", "quick settings come last, where they win"


def test_an_unknown_claim_is_refused_with_what_was_meant() -> None:
    with pytest.raises(RunError, match=r"claims.only=tttf: no such claim; did you mean ttft\? there are: "):
        chosen(["tttf"], all_claims())


def test_ratios_are_averaged_as_ratios() -> None:
    """Twice as much and half as much are no change; what is saved is one less that."""
    ratios = [2.0, 0.5, 2.0, 0.5, 1.0, nan]
    found = measured_ratio(ratios, "repeats")
    assert (found.value.mid, found.samples) == (pytest.approx(1), (2.0, 0.5, 2.0, 0.5, 1.0))
    assert found.value.low == pytest.approx(1 / found.value.high, rel=0.1)
    saved = measured_cut([0.25] * 5, "repeats")
    assert (saved.value.low, saved.value.mid, saved.value.high) == pytest.approx((0.75, 0.75, 0.75))
    worse = measured_cut(ratios, "repeats").value
    assert worse.low < 0 < worse.high
    assert not measured_cut([inf] * 5, "repeats").value.known
