"""``make held-out``: what each of its steps is told agrees, and what it says where there can be no cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.held_out import AXES
from analysis.load import flat_config
from launch.held_out.__main__ import main
from launch.held_out.cells import Grid, tc_rate
from launch.virtual_cluster import namespaces
from launch.virtual_cluster.links import parse_rate
from tests.unit.test_config import composed
from xpyd.break_even import conditions
from xpyd.config.load import dump_config, load_config
from xpyd.config.modeled import BreakEven
from xpyd.config.serve import Calibrate

GRID = Grid(
    placements=("1p1d", "2p1d"),
    links_gbps=(2.5, 1.0),
    input_lens=(48,),
    output_lens=(6,),
    rates_rps=(4.0,),
    calibration_gbps=0.35,
)


def test_calibration_maps_and_comparisons_are_of_the_same_thing() -> None:
    calibrated = load_config(composed("calibrate", *GRID.calibration_overrides(2, [Path("runs/a"), Path("runs/b")])))
    assert isinstance(calibrated, Calibrate)
    assert calibrated.pool == ("runs/a", "runs/b")
    assert calibrated.fabric.rate_gbps == 0.35
    for cell in GRID.cells[1:3]:
        mapped = load_config(composed("break_even", *cell.map_overrides(Path("calibration.yaml"), 5)))
        assert isinstance(mapped, BreakEven)
        assert mapped.model == calibrated.model
        assert mapped.placement.num_workers == cell.num_nodes
        measured = dict(flat_config(dump_config(load_config(composed("compare", *cell.run_overrides(5))))))
        where = {axis: measured[key] for axis, key in AXES.items()}
        (point,) = mapped.break_even.points()
        assert tuple(where[axis] for axis in ("output_len", "rate_rps", "input_len", "link_gbps")) == point
        for key, value in flat_config(conditions(mapped)):
            assert measured[key] == value, key


def test_cells_go_link_by_link_and_their_names_tell_them_apart() -> None:
    assert [(cell.placement, cell.link_gbps) for cell in GRID.cells] == [
        ("1p1d", 1.0),
        ("1p1d", 2.5),
        ("2p1d", 1.0),
        ("2p1d", 2.5),
    ]
    assert len({cell.name for cell in GRID.cells}) == 4
    assert [cell.num_nodes for cell in GRID.cells] == [2, 2, 3, 3]
    assert parse_rate(tc_rate(2.5)) == 2_500_000_000


def test_a_link_of_the_cells_is_not_calibrated_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--links", "0.2", "1", "--calibration-gbps", "1"]) == 2
    assert "--calibration-gbps 1 is one of --links" in capsys.readouterr().err


def test_a_machine_without_slurm_is_told_what_to_do_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(namespaces, "refusal", lambda: "missing packages: apt-get install slurm-wlm")
    assert main(["--dir", str(tmp_path / "vc")]) == 2
    assert capsys.readouterr().err == "error: missing packages: apt-get install slurm-wlm\n"
    assert not (tmp_path / "vc").exists()
