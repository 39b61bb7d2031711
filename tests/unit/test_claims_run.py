"""How claims start the other experiments: whose settings win, what is refused, and that every command line composes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_config import composed
from xpyd import claims
from xpyd.claims import Planned, command_of, folder_of, handed_on, settings_of
from xpyd.claims_choice import ClaimsConfig
from xpyd.config.base import ConfigError, RunConfig
from xpyd.config.claims import Claims
from xpyd.config.load import load_config

GAPS = Planned("gaps", "interference", ("placement=1c", "sweep.num_repeats=5"), ("prefill_burst",))
BOTH = Planned("both", "compare", ("num_pairs=6", "workload=fixed"), ("ttft",))
USER = ["placement=2p2d", "placement.num_prefill=2", "placement.allow_shared_node=true", "fabric=tcp", "model=small"]


def config_of(*overrides: str) -> Claims:
    config = load_config(composed("claims", *overrides))
    assert isinstance(config, Claims)
    return config


def words_of(planned: Planned, words: list[str], config: Claims | None = None) -> list[str]:
    return command_of(planned, settings_of(planned, words), Path("/runs/claims/a b"), config or config_of())[3:]


def test_each_experiment_gets_the_words_that_it_has_and_its_own_win() -> None:
    assert words_of(GAPS, USER) == [
        "placement=1c",
        "placement.allow_shared_node=true",
        "model=small",
        "sweep.num_repeats=5",
        "run.root='/runs/claims/a b/runs'",
        f"run.name={folder_of(GAPS, settings_of(GAPS, USER)).name}",
        "run.resume=true",
    ]
    assert words_of(BOTH, [*USER, "workload.num_requests=9", "num_pairs=99"])[:6] == [
        "placement=2p2d",
        "placement.num_prefill=2",
        "placement.allow_shared_node=true",
        "fabric=tcp",
        "model=small",
        "num_pairs=6",
    ]


def test_other_settings_are_another_measurement() -> None:
    folder = folder_of(GAPS, settings_of(GAPS, ["model=small"]))
    assert str(folder).startswith("runs/interference/gaps-")
    assert folder == folder_of(GAPS, settings_of(GAPS, ["model=small", "fabric=tcp"])), "which it does not take"
    assert folder != folder_of(GAPS, settings_of(GAPS, ["model=micro"]))


def test_slurm_jobs_are_waited_for() -> None:
    assert "launch.wait=true" in words_of(GAPS, [], config_of("launch=slurm"))
    assert "launch.wait=true" not in words_of(GAPS, [])


def test_what_nobody_would_read_is_refused() -> None:
    assert handed_on(["claims=quick", "claims.only=[ttft]", "run.root=x", "run.report=false"], [GAPS]) == [
        "run.report=false"
    ]
    with pytest.raises(ConfigError, match=r"fabric=tcp: none of the experiments .* \(interference\); leave it out"):
        handed_on(["fabric=tcp"], [GAPS])
    assert handed_on(["fabric=tcp"], [GAPS, BOTH]) == ["fabric=tcp"]


def test_colocated_placements_and_counts_of_blocks_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_colocated=2: claims are about xPyD"):
        config_of("placement=2c")
    with pytest.raises(ConfigError, match="num_blocks=3: each claim's experiment counts its own"):
        config_of("+num_blocks=3")


@pytest.fixture(scope="module", params=[False, True], ids=["default", "quick"])
def built(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Every measurement's configuration, composed from its own words alone."""
    planned = claims.plan(replace(config_of(), claims=ClaimsConfig(quick=request.param)))
    assert planned is not None
    return {each.name: load_config(composed(each.experiment, *own_words(each))) for each in planned}


def own_words(planned: Planned) -> list[str]:
    return [word for word in words_of(planned, []) if not word.startswith("run.")]


def test_every_measurement_composes_and_builds(built: dict[str, Any]) -> None:
    assert {"interference", "handoff", "pull", "push", "static", "saturation", "compare"} <= set(built)
    pull, push = built["pull"], built["push"]
    assert replace(push, transfer=pull.transfer) == pull, "the two differ in who decides alone"
    static, continuous = built["static"], built["continuous"]
    assert replace(static, scheduler=continuous.scheduler) == continuous
    assert replace(static.scheduler, policy="chunked") == continuous.scheduler


def test_the_tuned_rival_fits_those_that_play_it(built: dict[str, Any]) -> None:
    compare, saturation = built["compare"], built["saturation"]
    assert compare.colocated_fingerprint == saturation.colocated_fingerprint
    assert ("rival" in built) == (compare.num_pairs == 6), "a quick pass tunes no rival"
    if "rival" in built:
        assert built["rival"].colocated_fingerprint == compare.colocated_fingerprint


def test_a_dry_run_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["claims.only=[prefill_burst]", "launch.dry_run=true"]
    config = replace(config_of(*overrides), run=RunConfig(str(tmp_path)))
    assert claims.run_claims(config, overrides) == 0
    assert "-m experiments.interference placement=1c" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_claim_that_there_is_not_ends_it(capfd: pytest.CaptureFixture[str]) -> None:
    assert claims.run_claims(config_of("claims.only=[tttf]"), []) == 2
    assert "did you mean ttft?" in capfd.readouterr().err


def test_the_last_words_of_a_failure(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("block 1/3\nerror: no wire; plug it in\nerror: the ranks ended with exit code 1\nresults: x\n")
    assert claims._last_words(log) == "no wire; plug it in"
    log.write_text("Segmentation fault\n\n")
    assert claims._last_words(log) == "Segmentation fault"
    log.write_text("")
    assert claims._last_words(log) == "it said nothing"
