"""Length distributions: range, exact means, no pile-up at a limit, and settings that are refused."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpyd.workload.lengths import LENGTHS, LengthConfig

NUM = 20_000


def fixed() -> st.SearchStrategy[LengthConfig]:
    return st.builds(lambda n: LengthConfig("fixed", n), st.integers(1, 10**6))


def uniform() -> st.SearchStrategy[LengthConfig]:
    ends = st.tuples(st.integers(1, 10**4), st.integers(0, 10**4))
    return ends.map(lambda pair: LengthConfig("uniform", low=pair[0], high=pair[0] + pair[1]))


def lognormal() -> st.SearchStrategy[LengthConfig]:
    settings = st.tuples(st.floats(1, 500), st.floats(0.01, 4), st.integers(0, 2000))
    return settings.map(lambda s: LengthConfig("lognormal", median=s[0], sigma=s[1], max_len=int(s[0]) + 1 + s[2]))


def test_every_kind_is_registered() -> None:
    assert set(get_args(get_type_hints(LengthConfig)["kind"])) == set(LENGTHS)


@given(config=st.one_of(fixed(), uniform(), lognormal()), num=st.integers(0, 50), seed=st.integers(0, 99))
def test_lengths_are_whole_within_range_and_as_many_as_asked(config: LengthConfig, num: int, seed: int) -> None:
    lengths = config.build()
    drawn = lengths.draw(np.random.default_rng(seed), num)
    assert drawn.shape == (num,)
    assert np.issubdtype(drawn.dtype, np.integer)
    assert ((drawn >= 1) & (drawn <= lengths.longest())).all()


@pytest.mark.parametrize(
    "config",
    [
        LengthConfig("fixed", 512),
        LengthConfig("uniform", low=1, high=4),
        LengthConfig("lognormal", median=64, sigma=0.6, max_len=512),
        LengthConfig("lognormal", median=2, sigma=1.5, max_len=6),  # redraws at both ends
    ],
)
def test_mean_is_that_of_the_draws(config: LengthConfig) -> None:
    drawn = config.build().draw(np.random.default_rng(3), NUM)
    assert config.build().mean() == pytest.approx(drawn.mean(), abs=5 * drawn.std() / NUM**0.5)


def test_means_by_hand() -> None:
    assert LengthConfig("fixed", 512).build().mean() == 512
    assert LengthConfig("uniform", low=1, high=4).build().mean() == 2.5
    far_limit = LengthConfig("lognormal", median=100, sigma=0.5, max_len=5000)
    assert far_limit.build().mean() == pytest.approx(100 * np.exp(0.5**2 / 2), rel=1e-4)  # exp(mu + sigma^2 / 2)


def test_uniform_reaches_both_ends() -> None:
    drawn = LengthConfig("uniform", low=3, high=5).build().draw(np.random.default_rng(0), 200)
    assert set(drawn.tolist()) == {3, 4, 5}


def test_lognormal_does_not_pile_up_at_its_limit() -> None:
    drawn = LengthConfig("lognormal", median=100, sigma=1.0, max_len=200).build().draw(np.random.default_rng(0), NUM)
    last, before = (int(((drawn > end - 10) & (drawn <= end)).sum()) for end in (200, 190))
    assert 0 < last < 1.3 * before  # clipping would put a quarter of all draws on 200


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "fixed"}, "tokens is not set; kind=fixed needs tokens"),
        ({"kind": "uniform", "low": 9, "high": 3}, "low=9 is above high=3"),
        ({"kind": "fixed", "tokens": 5, "max_len": 9}, "max_len=9: kind=fixed would ignore it"),
        ({"kind": "lognormal", "median": 90.0, "sigma": 1.0, "max_len": 50}, r"median=90.0 is outside 1\.\.max_len=50"),
        ({"kind": "lognormal", "median": 0.2, "sigma": 1.0, "max_len": 50}, "median=0.2 is outside"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LengthConfig(**settings)
