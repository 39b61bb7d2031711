"""A busy node stalls transfers for longer than they take: the link is seen all the same."""

from __future__ import annotations

import pytest

from xpyd.economics.cost import LinkPoint, fit_link
from xpyd.worker.remote_link import fastest


def test_stalls_do_not_hide_the_time_that_grows_with_bytes() -> None:
    true = {size: 1e-4 + size / 1e9 for size in (8192, 32768, 131072)}
    points = [LinkPoint(size, 1, seconds) for size, seconds in true.items()]
    points += [LinkPoint(size, 1, seconds + 3e-3) for size, seconds in true.items() if size < 100_000 for _ in range(3)]
    with pytest.raises(ValueError, match="no time that grows with bytes"):
        fit_link(points)
    model = fit_link(fastest(points)).model
    assert (model.alpha_s, model.bytes_per_s) == pytest.approx((1e-4, 1e9))
