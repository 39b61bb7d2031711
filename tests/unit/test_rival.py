"""The tuned rival: found for the comparison that it was made for, refused for any other, played beside the first."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.unit.test_config import CONF, composed
from tests.unit.test_parity import compare
from xpyd.colocated_tuning import preset_text, reason
from xpyd.compose import settled
from xpyd.config.base import ConfigError
from xpyd.config.compare import Compare
from xpyd.config.load import load_config
from xpyd.config.serve import TuneColocated
from xpyd.rival import RivalConfig, find_rival
from xpyd.scheduler.config import SchedulerConfig
from xpyd.score import Score, mean_score
from xpyd.trial import compare_blocks

TUNED = SchedulerConfig("chunked", 8, 64, 16, 512)
PRINT = compare().colocated_fingerprint


def write_preset(root: Path, name: str, scheduler: SchedulerConfig, made_for: dict[str, str], age: int) -> Path:
    path = root / "tune_colocated" / name / "rival" / "tuned.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(preset_text(scheduler, made_for, ["because"]))
    (path.parents[1] / "DONE").touch()
    os.utime(path, (1000 - age, 1000 - age))
    return path


def test_the_newest_finished_preset_of_this_comparison_is_found(tmp_path: Path) -> None:
    assert find_rival(tmp_path, PRINT) is None
    write_preset(tmp_path, "a", replace(TUNED, max_num_seqs=4), PRINT, age=2)
    path = write_preset(tmp_path, "b", TUNED, PRINT, age=1)
    write_preset(tmp_path, "c", TUNED, {**PRINT, "model": "other"}, age=0)
    unfinished = write_preset(tmp_path, "d", TUNED, PRINT, age=0)
    (unfinished.parents[1] / "DONE").unlink()
    assert find_rival(tmp_path, PRINT) == (path, RivalConfig("tuned", TUNED, PRINT))


def test_auto_becomes_what_is_there_before_anything_is_frozen(tmp_path: Path) -> None:
    root = f"run.root={tmp_path}"
    alone = settled(compare(root))
    assert isinstance(alone, Compare)
    assert alone.rival.use == "configured"
    write_preset(tmp_path, "a", TUNED, PRINT, age=0)
    found, told = settled(compare(root)), settled(compare(root, "rival=configured"))
    assert isinstance(found, Compare)
    assert isinstance(told, Compare)
    assert found.arms == ("colocated", "colocated_tuned", "disaggregated", "null")
    assert found.planned_blocks == 20
    assert told.arms == ("colocated", "disaggregated", "null")


def test_a_written_preset_is_a_choice_of_compare(tmp_path: Path) -> None:
    path = write_preset(tmp_path, "a", TUNED, PRINT, age=0)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        chosen = compose("compare", [f"hydra.searchpath=[file://{path.parents[1]}]", "rival=tuned"])
    config = load_config(OmegaConf.to_container(chosen, resolve=True))  # type: ignore[arg-type]
    assert isinstance(config, Compare)
    assert config.tuned == TUNED


def test_the_tuned_arm_and_its_null_control_run_the_tuned_settings() -> None:
    config = replace(compare("num_pairs=1"), rival=RivalConfig("tuned", TUNED, PRINT))
    ran = {block.arm: block.scheduler for block in compare_blocks(config)}
    common = config.scheduler
    assert ran == {"colocated": common, "colocated_tuned": TUNED, "disaggregated": common, "null": TUNED}


def test_a_rival_that_is_the_configured_one_is_not_played_twice() -> None:
    config = compare()
    config = replace(config, rival=RivalConfig("tuned", config.scheduler, PRINT))
    assert config.arms == ("colocated", "disaggregated", "null")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("model=micro", "model 'tiny"),
        ("placement=2p2d", "ranks '2C', here '4C'"),
        ("workload.arrival.rate_rps=9", "workload"),
        ("workload=documents", "workload"),
        ("slo=tight", "slo 'ttft 0.5 s"),
    ],
)
def test_a_preset_for_something_else_is_refused(override: str, part: str) -> None:
    with pytest.raises(ValueError, match=rf"rival\.made_for: .*{part}.*rival=configured"):
        replace(compare(override), rival=RivalConfig("tuned", TUNED, PRINT))


def test_another_seed_and_length_of_the_run_are_the_same_load() -> None:
    assert compare("workload.seed=5", "workload.num_requests=7").colocated_fingerprint == PRINT
    assert compare("placement=1p1d", "scheduler.max_num_batched_tokens=64").colocated_fingerprint == PRINT


def test_a_rival_with_more_memory_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the arms are unequal: scheduler\.num_kv_blocks is 512"):
        replace(compare(), rival=RivalConfig("tuned", replace(TUNED, num_kv_blocks=640)))


@pytest.mark.parametrize("wrong", [{"use": "tuned"}, {"use": "configured", "scheduler": TUNED}])
def test_use_and_scheduler_belong_together(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"rival\.use="):
        RivalConfig(**wrong)  # type: ignore[arg-type]


def test_the_preset_says_why() -> None:
    config = load_config(composed("tune_colocated"))
    assert isinstance(config, TuneColocated)
    slow, fast = Score(1.0, 0.5, 0.2, 0.4, 1.0), Score(2.0, 1.0, 0.1, 0.3, 0.9)
    lines = reason("b", "a", {"a": slow, "b": mean_score([fast, fast])}, config.search)
    assert any("a (start): goodput 1 /s (50%)" in line for line in lines)
    assert not any("start stays" in line for line in lines)
    assert "start stays" in reason("a", "a", {"a": fast, "b": slow}, config.search)[-1]


def test_a_search_that_would_ignore_settings_is_refused() -> None:
    for wrong in ("+num_blocks=2", "faults=go_on"):
        with pytest.raises(ConfigError, match="the search counts its own blocks"):
            load_config(composed("tune_colocated", wrong))
