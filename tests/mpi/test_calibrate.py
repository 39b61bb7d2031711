"""The calibrate experiment as a user runs it: the file has every part, and what reads it takes it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from analysis import calibrate
from tests.mpi.test_experiments import plain, run_folder
from xpyd.calibration_points import FILE
from xpyd.model.spec import ModelSpec
from xpyd.simulate.model import read_calibration

MICRO = ModelSpec("micro", 2, 64, 4, 2, 16, 128, 256)


@pytest.mark.long
@pytest.mark.mpi
def test_a_calibration_knows_steps_link_runs_and_what_moving_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = plain("calibrate", "placement.allow_shared_node=true", "model=micro", "num_rounds=1", f"run.root={tmp_path}")
    assert done.returncode == 0, done.stderr
    folder = run_folder(tmp_path, "calibrate")
    content = yaml.safe_load((folder / "calibration.yaml").read_text())
    assert content["version"] == 5
    assert set(content["engine"]) == set(content["scatter"]) == {"colocated", "prefill", "decode"}
    assert [len(group) for group in content["slowness"]] == [4], "one for each short block of the round"
    measured = [content[name] for name in ("compute", "link", "moving", "delays")]
    for part in (*measured, *content["engine"].values()):
        assert all(each["low"] <= each["high"] for each in part.values())
        assert all(each["value"] >= 0 for name, each in part.items() if name != "hidden_s")
    points = json.loads((folder / FILE).read_text())
    transfers, delays = points["transfers"], Counter(each["delay"] for each in points["delays"])
    assert delays == {"submit": 18, "leave": 9, "admit": 9, "tell": 18 * 32}, "of nine requests in either arm"
    assert content["delays"]["submit_s"]["value"] > 0
    assert {each["concurrency"] for each in transfers} == {1, 2, 4}
    assert {"gain_2", "gain_4"} < set(content["link"])
    costs = read_calibration(folder / "calibration.yaml", MICRO)
    assert set(costs.engines) == set(costs.scatters) == {"colocated", "prefill", "decode"}
    assert (folder / FILE).exists()
    assert calibrate.main([str(folder), "--format", "csv"]) == 0
    shown = capsys.readouterr().out
    for word in ("engine, decode", "step_factor", "receive_byte_s", "send_step_s", "admit_s"):
        assert word in shown
