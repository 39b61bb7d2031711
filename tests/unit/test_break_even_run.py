"""The break_even experiment from config to the frozen map: four cells, simpler predictors, and a run that goes on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from tests.unit.test_config import composed
from tests.unit.test_simulate_run import points
from xpyd.break_even import FAST, FREE, NOMINAL, PREDICTION, RATIO, SIMULATOR, SLOW, UNDISTURBED, run_break_even
from xpyd.calibration import fitted
from xpyd.config.base import ConfigError
from xpyd.config.load import dump_config, load_config
from xpyd.config.modeled import BreakEven
from xpyd.economics.break_even import STAY
from xpyd.economics.cost import LinkModel
from xpyd.economics.frozen import read_sealed
from xpyd.entry import Job
from xpyd.run_dir import RunDir
from xpyd.simulate.model import at_rate

QUICK = [
    "model=tiny",
    "workload=fixed",
    "workload.num_requests=6",
    # A machine about as fast as one core.
    "machine.peak_flops=2e11",
    "machine.memory_gbytes_s=20",
    "break_even={links_gbps:[0.01,50],input_lens:[32,128],rates_rps:[500],output_lens:[6],naive:true,band:0.1}",
]
CELL = ["output_len", "rate_rps", "input_len", "link_gbps"]


def configured(*overrides: str) -> BreakEven:
    config = load_config(composed("break_even", *QUICK, *overrides))
    assert isinstance(config, BreakEven)
    return config


def played(folder: Path, config: BreakEven) -> Path:
    run_dir = RunDir.create(folder, "break_even", "run")
    run_dir.write_config(dump_config(config))
    run_break_even(config, Job(config, run_dir))
    run_dir.finish()
    return run_dir.path


def saved(content: dict[str, Any]) -> dict[tuple[int, float], float]:
    return {(cell["input_len"], cell["link_gbps"]): cell["saved"]["mid"] for cell in content["cells"]}


def test_four_cells_from_config_to_the_frozen_map(tmp_path: Path) -> None:
    folder = played(tmp_path, configured())
    content = read_sealed(folder / PREDICTION)
    assert len(content["cells"]) == 4
    found = saved(content)
    for input_len in (32, 128):
        assert found[input_len, 50.0] > found[input_len, 0.01], "a faster link cannot make splitting cost more"
    bills = [cell["bill_s"] for cell in content["cells"] if cell["input_len"] == 128]
    assert bills[0] == pytest.approx(5000 * bills[1], rel=0.5), "in closed form the wire alone is the link"
    slow = next(cell for cell in content["cells"] if (cell["input_len"], cell["link_gbps"]) == (128, 0.01))
    assert slow["answer"] == STAY
    assert slow["bill_s"] > 0.1, "more than a hundred milliseconds of KV on such a link"
    rows = pd.read_parquet(folder / "break_even.parquet")
    assert len(rows) == 4 * 4 * 5 * 2, "cells, predictors, pairs and arms"
    assert content["conditions"]["slo"] == {"ttft_s": 0.5, "itl_s": 0.1}
    assert "rate_rps" not in content["conditions"]["workload"]["arrival"]


def test_the_map_says_what_a_faster_and_a_slower_machine_would_give(tmp_path: Path) -> None:
    path = tmp_path / "calibration.yaml"
    path.write_text(yaml.safe_dump({"conditions": {"model": "tiny"}, **fitted([points()])}))
    config = configured(f"simulate.calibration={path}", "break_even.links_gbps=[1]", "break_even.rates_rps=[20]")
    (short, _) = read_sealed(played(tmp_path, config) / PREDICTION)["cells"]
    for arm in ("colocated", "disaggregated"):
        fast, usual, slow = (short["figures"][name][arm]["ttft_p50_s"] for name in (FAST, SIMULATOR, SLOW))
        assert 0.75 < fast / usual < 0.85 < 1.2 < slow / usual < 1.3, "22 %: two rounds of 0.99 and 1.01 say little"
        low, high = short["ranges"][arm]["ttft_p50_s"]
        assert low <= fast < usual < slow <= high
    low, high = short["ranges"][RATIO]["ttft_p50_s"]
    assert low == high == 1, "of a lone prompt, whose first token does not wait for its KV, all cancels"
    content = read_sealed(tmp_path / "break_even/run" / PREDICTION)
    assert content["costs"]["moving"]["receive_byte_s"] > 0
    assert content["drift"]["off"] == pytest.approx(0.22, abs=0.01)


def test_the_simpler_predictors_leave_out_what_they_say(tmp_path: Path) -> None:
    rows = pd.read_parquet(played(tmp_path, configured()) / "break_even.parquet")
    rows = rows[rows["input_len"] == 128]
    exposed = rows[rows["arm"] == "disaggregated"].groupby(["predictor", "link_gbps"])["exposed_transfer_s"].mean()
    assert exposed[FREE, 0.01] == pytest.approx(0, abs=1e-8)
    assert exposed[NOMINAL, 0.01] < exposed[SIMULATOR, 0.01], "no alpha, no descriptors"
    stays = rows[rows["arm"] == "colocated"].groupby(["predictor", "link_gbps"])["decode_s"].mean()
    assert stays[UNDISTURBED, 0.01] < stays[SIMULATOR, 0.01]
    assert stays[SIMULATOR, 0.01] == stays[SIMULATOR, 50.0], "colocated moves nothing"


def test_a_run_that_was_stopped_goes_on_behind_its_cells(tmp_path: Path) -> None:
    config = configured()
    whole = read_sealed(played(tmp_path / "whole", config) / PREDICTION)
    run_dir = RunDir.create(tmp_path, "break_even", "cut")

    class Impatient(Job):
        def say(self, text: str) -> None:
            if text.startswith("2/4"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_break_even(config, Impatient(config, run_dir))
    assert not (run_dir.path / PREDICTION).exists()
    said: list[str] = []

    class Listening(Job):
        def say(self, text: str) -> None:
            said.append(text)

    again = RunDir(run_dir.path, run_dir.next_attempt())
    run_break_even(config, Listening(config, again))
    again.finish()
    assert said[0] == "resumed, attempt 1: 2 of 4 cells are played"
    assert [line.split()[0] for line in said[1:]] == ["3/4", "4/4", "frozen:"]
    content = read_sealed(run_dir.path / PREDICTION)
    assert content["cells"] == whole["cells"]
    assert len(pd.read_parquet(run_dir.path / "break_even.parquet")) == 160


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["num_pairs=4"], "every cell would be undecided; give at least 5"),
        (["workload=closed_loop"], "break_even sets the rate of arrivals"),
        (["simulate.arms=serve"], "plays both arms of every pair"),
        (["break_even.input_lens=[9000]"], r"the longest request of the map has 9006; raise scheduler\.num_kv_blocks"),
        (["break_even.output_lens=[1]"], r"break_even\.output_lens"),
    ],
)
def test_what_cannot_be_mapped_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(*overrides)


def test_a_calibrated_link_is_as_fast_as_the_slower_of_wire_and_software() -> None:
    link = LinkModel(1e-4, 1e-5, 1e9)
    assert at_rate(link, 100.0) == link
    assert at_rate(link, 1.0) == dataclasses.replace(link, bytes_per_s=0.125e9)
    share = link.bytes_per_s / 1.25e9 / 0.95  # of the wire: a link that fills it fills another one as far
    assert at_rate(link, 1.0, 10.0 * share) == dataclasses.replace(link, bytes_per_s=pytest.approx(0.95 * 0.125e9))
    assert at_rate(link, 100.0, 10.0 * share).bytes_per_s == pytest.approx(0.95 * 12.5e9)
    assert at_rate(link, 100.0, 20.0 * share) == link, "no wire kept it back, so no faster one helps"
    several = dataclasses.replace(link, gain_2=1.2, gain_4=0.8)
    assert at_rate(several, 100.0) == several
    assert at_rate(several, 8.8) == dataclasses.replace(several, gain_2=pytest.approx(1.1)), "together no faster either"
    bound = at_rate(several, 100.0, 10.0 * share)
    assert (bound.bytes_per_s, bound.gain_2) == (pytest.approx(0.95 * 12.5e9), pytest.approx(1 / 0.95))
