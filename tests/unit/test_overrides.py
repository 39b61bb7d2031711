"""What a wrong command line is told: the key, the value and what to write instead, and no words of Hydra's."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.unit.test_config import composed
from xpyd.compose import USER_ERROR, compose
from xpyd.config.base import ConfigError, Experiment
from xpyd.config.load import load_config
from xpyd.entry import Job, main
from xpyd.overrides import repeated
from xpyd.resume import open_run
from xpyd.run_dir import RunDir, RunFolderError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model=tny", "model=tny: no such option; did you mean tiny? allowed: checkpoint, "),
        ("+preset=dmo", "preset=dmo: no such option; did you mean demo? allowed: demo, "),
        ("preset=demo", "write it with a plus: +preset="),
        ("prest=demo", "prest: no such key; did you mean preset?"),
        ("search=tcp", "search: compare does not read this group; leave it out"),
        ("+model=small", "model: is there already, so write it without the plus: model="),
        ("+num_pairs=3", "num_pairs: is there already, so write it without the plus"),
        ("transport=ucx,mpi", "transport=ucx,mpi: several values; add -m for one run of each, or write a list"),
        ("run.name=a b'c", "run.name=a b'c: not readable; put what holds blanks"),
        ("launch.args=[--mem=3G]", "launch.args=[--mem=3G]: not readable"),
    ],
)
def test_a_wrong_override_is_told_what_to_write(
    override: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert compose("compare", [override], lambda config, overrides: 0) == USER_ERROR
    printed = capsys.readouterr().err
    assert said in printed
    assert not re.search("(?i)hydra|search path|defaults list", printed)


def test_a_key_given_twice_is_said_and_one_given_alike_is_not() -> None:
    assert repeated(["num_pairs=3", "model=tiny", "++num_pairs=5", "model=tiny"]) == [
        "num_pairs is given 2 times; the last one counts: ++num_pairs=5"
    ]


@pytest.mark.parametrize(
    "override", ["run.name=../x", "run.name=/x", "run.name='a\nb'", "run.name='..'", 'run.root="~/runs"', "run.root=''"]
)
def test_a_run_folder_stays_in_its_root(override: str) -> None:
    with pytest.raises(ConfigError, match=r"run: (name|root)="):
        load_config(composed("serve", override))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"Not a directory .*file.*run\.root="):
        open_run(load_config(composed("serve", f"run.root={tmp_path / 'file' / 'runs'}")))


@pytest.mark.parametrize("content", ["", "model: [", "\x00"])
def test_a_damaged_config_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(RunFolderError, match=r"config\.yaml holds no config"):
        RunDir(tmp_path).read_config()


@pytest.mark.parametrize(
    "path", ["docs/slurm.md", *(f"conf/launch/{kind}.yaml" for kind in ("slurm", "srun", "mpirun"))]
)
def test_documented_launch_arguments_are_readable(path: str) -> None:
    found = re.findall(r"'(launch\.args=\[.*?\])'", (ROOT / path).read_text())
    assert found
    for override in found:
        assert composed("serve", override)["launch"]["args"]


@pytest.mark.parametrize(("code", "num_played"), [(0, 3), (1, 3), (130, 1), (143, 1)])
def test_one_interrupt_ends_a_sweep(
    code: int, num_played: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A point that failed does not end the sweep; one that was interrupted does."""
    monkeypatch.chdir(tmp_path)
    played: list[list[str]] = []

    def act(config: Experiment, overrides: list[str]) -> int:
        played.append(overrides)
        return code

    assert compose("serve", ["-m", "workload.seed=1,2,3"], act) == code
    assert played == [[f"workload.seed={seed}"] for seed in (1, 2, 3)][:num_played]
    assert ("no further point of the sweep" in capsys.readouterr().err) == (num_played == 1)


def test_an_interrupt_of_what_runs_here_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(job: Job) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["economics", "run.root=runs"])
    with pytest.raises(SystemExit) as ended:
        main("economics", interrupted)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "error: interrupted; what is not written is lost\n"
