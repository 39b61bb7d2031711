"""How a run is put together: the order of blocks, equal requests in a pair, and a prediction that always comes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.test_config import composed
from xpyd.config.base import ConfigError
from xpyd.config.compare import Compare
from xpyd.config.load import load_config
from xpyd.economics.cost import ComputePoint, LinkPoint
from xpyd.entry import Job
from xpyd.order import interleave
from xpyd.run_dir import RunDir
from xpyd.trial import compare_blocks, fit_points, write_prediction


def compare(*overrides: str) -> Compare:
    config = load_config(composed("compare", *overrides))
    assert isinstance(config, Compare)
    return config


def test_arms_alternate_a_b_b_a() -> None:
    assert [arm for _, arm in interleave(2, compare("null_control=false").arms)] == [
        "colocated",
        "disaggregated",
        "disaggregated",
        "colocated",
    ]


def test_the_null_control_is_mirrored_too() -> None:
    arms = compare().arms
    order = [arm for _, arm in interleave(2, arms)]
    assert order == ["colocated", "disaggregated", "null", "null", "disaggregated", "colocated"]
    assert [pair for pair, _ in interleave(2, arms)] == [0, 0, 0, 1, 1, 1]


def test_the_hybrid_arm_comes_third_and_is_mirrored() -> None:
    arms = compare("hybrid=on", "null_control=false").arms
    assert [arm[0] for _, arm in interleave(2, arms)] == ["c", "d", "h", "h", "d", "c"]


def test_blocks_of_a_pair_play_the_same_requests() -> None:
    blocks = compare_blocks(compare("num_pairs=2"))
    by_pair = {pair: [b.requests for b in blocks if b.pair == pair] for pair in (0, 1)}
    assert all(requests == by_pair[0][0] for requests in by_pair[0])
    assert by_pair[0][0] != by_pair[1][0]
    assert [b.number for b in blocks] == list(range(6))


def test_a_link_too_noisy_to_fit_is_predicted_at_its_nominal_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [ComputePoint(0.001 * n, num_prefill_tokens=n) for n in (1, 10, 100, 200, 300, 400)]
    noise = [LinkPoint(num_bytes, 1, 0.002 - num_bytes * 1e-9) for num_bytes in (1000, 10_000, 100_000)]
    calibration = fit_points(steps, noise, 10.0, Job(None, RunDir(tmp_path)))
    assert calibration.link.model.bytes_per_s == 1.25e9
    assert "fabric.rate_gbps=10.0" in capsys.readouterr().err


def test_static_batches_are_not_predicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They would come out as prefill-first, without the wait for a batch to end."""
    session: Any = SimpleNamespace(comm=SimpleNamespace(bcast=lambda value: value))
    write_prediction(session, compare("scheduler=static"), Job(None, RunDir(tmp_path)))
    assert "no prediction: the cost model knows no wait for a static batch" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"hybrid\.policy=cost with scheduler\.policy=static"):
        compare("scheduler=static", "hybrid=on")
