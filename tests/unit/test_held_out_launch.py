"""``make held-out``: what each of its steps is told agrees, and what it says where there can be no cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.held_out import AXES
from analysis.load import flat_config
from launch.held_out.__main__ import main
from launch.held_out.cells import Cell, Plan, placement_of, tc_rate
from launch.virtual_cluster import namespaces
from launch.virtual_cluster.links import parse_rate
from tests.unit.test_config import composed
from xpyd.break_even import conditions
from xpyd.calibration_points import FILE, SHARED, Points
from xpyd.config.load import dump_config, load_config
from xpyd.config.modeled import BreakEven
from xpyd.config.serve import Calibrate

PLAN = Plan(
    tuple(map(Cell.parse, ("1p1d-1-48-6-4", "1p1d-2.5-48-6-4", "2p1d-1-48-6-4", "1p2d-1-48-6-4"))),
    calibration_gbps=0.35,
)


def test_calibration_maps_and_comparisons_are_of_the_same_thing() -> None:
    for cell in PLAN.cells[1:3]:
        pool = [Path("runs/a"), Path("runs/b")]
        overrides = PLAN.calibration_overrides(cell.calibrated_on, 2, pool)
        calibrated = load_config(composed("calibrate", *overrides))
        assert isinstance(calibrated, Calibrate)
        assert calibrated.pool == ("runs/a", "runs/b")
        assert calibrated.fabric.rate_gbps == 0.35
        assert calibrated.placement.num_workers == cell.num_nodes
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


def test_a_cell_is_its_name_and_its_calibration_has_as_many_workers() -> None:
    assert [cell.name for cell in PLAN.cells] == ["1p1d-1-48-6-4", "1p1d-2.5-48-6-4", "2p1d-1-48-6-4", "1p2d-1-48-6-4"]
    assert [cell.num_nodes for cell in PLAN.cells] == [2, 2, 3, 3]
    assert [cell.calibrated_on for cell in PLAN.cells] == ["1p1d", "1p1d", "1p2d", "2p1d"]
    assert Cell.parse("2p2d-1-48-6-4").calibrated_on == "1p3d", "another ratio of four"
    assert parse_rate(tc_rate(2.5)) == 2_500_000_000


def test_earlier_calibrations_are_known_by_their_points(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(Points().content(dict.fromkeys(SHARED, "1P2D"))))
    assert placement_of(tmp_path) == "1p2d"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cells", "1p1d-1-48-6-4", "--calibration-gbps", "1"], "--calibration-gbps 1 is the link of 1p1d-1-48-6-4"),
        (["--cells", "1p1d-fast-48-6-4"], "cell '1p1d-fast-48-6-4' is not xPyD-GBPS-IN-OUT-RATE"),
        (["--cells", "2c-1-48-6-4"], "such as 1p1d-0.2-256-24-3"),
        (["--calibrated", "nowhere"], "--calibrated nowhere: no calibration"),
    ],
)
def test_what_would_not_be_held_out_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_machine_without_slurm_is_told_what_to_do_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(namespaces, "refusal", lambda: "missing packages: apt-get install slurm-wlm")
    assert main(["--dir", str(tmp_path / "vc")]) == 2
    assert capsys.readouterr().err == "error: missing packages: apt-get install slurm-wlm\n"
    assert not (tmp_path / "vc").exists()
