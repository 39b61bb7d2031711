"""``make held-out``: what each of its steps is told agrees, and what it says where there can be no cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.held_out import AXES
from analysis.load import flat_config
from launch.held_out.__main__ import main
from launch.held_out.cells import PRESET, Grid, cell_name, cell_overrides, tc_rate
from launch.virtual_cluster import namespaces
from launch.virtual_cluster.links import parse_rate
from tests.unit.test_config import composed
from xpyd.break_even import conditions
from xpyd.config.load import dump_config, load_config
from xpyd.config.modeled import BreakEven
from xpyd.config.serve import Calibrate

GRID = Grid(links_gbps=(2.5, 1.0), input_lens=(48, 96), output_lens=(6,), rates_rps=(200.0,), num_pairs=5)


def test_calibration_map_and_comparisons_are_of_the_same_thing() -> None:
    mapped = load_config(composed("break_even", *GRID.map_overrides(Path("calibration.yaml"))))
    assert isinstance(mapped, BreakEven)
    assert isinstance(load_config(composed("calibrate", PRESET)), Calibrate)
    points = set(mapped.break_even.points())
    assert len(points) == len(GRID.cells) == 4
    for cell in GRID.cells:
        measured = dict(flat_config(dump_config(load_config(composed("compare", *cell_overrides(cell, 5))))))
        where = {axis: measured[key] for axis, key in AXES.items()}
        assert tuple(where[axis] for axis in ("output_len", "rate_rps", "input_len", "link_gbps")) in points
        for key, value in flat_config(conditions(mapped)):
            assert measured[key] == value, key


def test_cells_go_link_by_link_and_their_names_tell_them_apart() -> None:
    assert [cell[0] for cell in GRID.cells] == [1.0, 1.0, 2.5, 2.5]
    assert len({cell_name(cell) for cell in GRID.cells}) == 4
    assert parse_rate(tc_rate(2.5)) == 2_500_000_000


def test_a_machine_without_slurm_is_told_what_to_do_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(namespaces, "refusal", lambda: "missing packages: apt-get install slurm-wlm")
    assert main(["--dir", str(tmp_path / "vc")]) == 2
    assert capsys.readouterr().err == "error: missing packages: apt-get install slurm-wlm\n"
    assert not (tmp_path / "vc").exists()
