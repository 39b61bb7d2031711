"""The search for a saturation point, against arms whose behaviour is known; prices by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_config import composed
from xpyd.config.base import ConfigError
from xpyd.config.load import load_config
from xpyd.economics.prices import PriceConfig, cost_per_million
from xpyd.saturation_search import Bracket, SaturationSearch


def search(**values: Any) -> SaturationSearch:
    given_values = {
        "start_rps": 4.0,
        "max_rps": 512.0,
        "growth": 2.0,
        "attainment": 0.9,
        "precision": 0.1,
        "block_s": 2.0,
        "num_repeats": 5,
    }
    return SaturationSearch(**{**given_values, **values})


def climb(made: SaturationSearch, holds_up_to: float) -> dict[float, float]:
    """All rates that are played with an arm that meets every limit up to a rate, and none above."""
    attained: dict[float, float] = {}
    while (rate := made.next_rate(attained)) is not None:
        assert rate not in attained, "no rate is asked for twice"
        attained[rate] = float(rate <= holds_up_to)
    return attained


def test_a_ladder_then_bisection() -> None:
    played = climb(search(), 21.0)
    assert list(played)[:4] == [4, 8, 16, 32]
    assert list(played)[4] == pytest.approx(22.6), "the geometric middle of 16 and 32"
    assert search().bracket(played) == Bracket(20.7, 22.6)


@given(st.floats(0.2, 400), st.floats(0.02, 0.5), st.floats(1.2, 4))
def test_the_point_lies_between_two_rates_as_close_as_asked(holds: float, precision: float, growth: float) -> None:
    made = search(precision=precision, growth=growth)
    found = made.bracket(climb(made, holds))
    assert found.low_rps is not None
    assert found.high_rps is not None
    assert found.low_rps <= holds < found.high_rps
    assert found.high_rps / found.low_rps <= 1 + precision + 0.02, "rates have three digits"


def test_an_arm_that_never_gives_way_or_never_holds_ends_the_search() -> None:
    assert search().bracket(climb(search(), 1e9)) == Bracket(512, None)
    assert search().bracket(climb(search(), 0.0)).low_rps is None
    assert search(max_rps=6).bracket(climb(search(max_rps=6), 1e9)) == Bracket(6, None), "the last rung is the limit"


def test_where_noise_lets_a_higher_rate_pass_the_lowest_that_failed_counts() -> None:
    assert search().bracket({4: 1.0, 8: 0.8, 16: 0.95}) == Bracket(4, 8)


def test_arrivals_go_on_for_long_enough() -> None:
    assert search().num_requests(4, at_least=24) == 24
    assert search().num_requests(100, at_least=24) == 200


def test_cost_by_hand() -> None:
    prices = PriceConfig("EUR", prefill_rank_hour=3.0, decode_rank_hour=1.0, colocated_rank_hour=2.0)
    assert prices.per_hour(num_prefill=1, num_decode=2) == 5.0
    assert prices.per_hour(num_colocated=3) == 6.0
    assert cost_per_million(5.0, 1000.0) == pytest.approx(5.0 / 3.6), "3.6 million tokens an hour"
    assert cost_per_million(5.0, 0.0) == float("inf")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["workload=closed_loop"], r"saturation sets the rate of arrivals"),
        (["null_control=true"], r"null_control=true: saturation plays each arm once"),
        (["search.max_rps=1"], r"max_rps=1\.0 is below start_rps=4\.0"),
    ],
)
def test_what_cannot_saturate_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(composed("saturation", *overrides))
