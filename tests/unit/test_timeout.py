"""A run that launch.timeout_s would cut off while its requests still arrive is refused before any rank starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_config import composed

from xpyd import entry
from xpyd.config.base import ConfigError, Ranked
from xpyd.config.load import load_config
from xpyd.run_dir import RunDir

LOCAL = ("placement.allow_shared_node=true", "workload.num_requests=30", "launch=local")


def config_of(experiment: str, *overrides: str) -> Ranked:
    config = load_config(composed(experiment, *LOCAL, *overrides))
    assert isinstance(config, Ranked)
    return config


@pytest.mark.parametrize(
    ("experiment", "override", "least_s"),
    [
        ("serve", "num_blocks=4", 4 * 15.0),
        ("compare", "null_control=false", 5 * 2 * 15.0),
        ("compare", "null_control=true", 5 * 3 * 15.0),
        ("kv_cache", "sweep={policies: [lru], tiers: [pool], num_repeats: 2}", 2 * 2 * 15.0),
        ("saturation", "slo=loose", 0.0),
    ],
)
def test_what_a_run_takes_by_its_arrivals_alone(experiment: str, override: str, least_s: float) -> None:
    config = config_of(experiment, override, "workload.arrival.rate_rps=2")
    assert config.least_s(0) == pytest.approx(least_s)
    if least_s:
        assert config.least_s(1) == pytest.approx(least_s - 15.0)


def test_a_closed_loop_says_nothing() -> None:
    assert config_of("serve", "workload=closed_loop").least_s(0) == 0


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_run_that_cannot_end_in_time_is_refused_and_leaves_no_folder(
    dry_run: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Path] = []
    monkeypatch.setattr(entry, "_start_ranks", lambda config, run_dir, overrides: started.append(run_dir.path) or 0)
    root, asked = f"run.root={tmp_path}", f"launch.dry_run={str(dry_run).lower()}"
    slow = config_of("compare", root, asked, "workload.arrival.rate_rps=0.01")
    with pytest.raises(ConfigError, match=r"launch\.timeout_s=3600: the requests of 15 blocks take about 45000 s"):
        entry._main_front(slow, [], lambda job: None, [])
    assert (started, list(tmp_path.rglob("*.yaml"))) == ([], [])
    fast = config_of("compare", root, asked, "workload.arrival.rate_rps=8", "run.name=fast")
    assert entry._main_front(fast, [], lambda job: None, []) == 0
    assert started == ([] if dry_run else [tmp_path / "compare" / "fast"])


def test_blocks_that_are_done_take_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "_start_ranks", lambda config, run_dir, overrides: 0)
    options = (f"run.root={tmp_path}", "run.name=mine", "run.resume=true", "workload.arrival.rate_rps=0.01")
    config = config_of("compare", *options)
    with pytest.raises(ConfigError, match="of 15 blocks"):
        entry._main_front(config, [], lambda job: None, [])
    monkeypatch.setattr(RunDir, "completed_blocks", lambda self: frozenset(range(14)))
    assert entry._main_front(config, [], lambda job: None, []) == 0
