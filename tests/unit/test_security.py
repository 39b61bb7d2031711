"""Nothing is unpickled, nothing from a configuration reaches a shell unquoted, and run folders are private."""

from __future__ import annotations

import ast
import os
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.test_config import composed
from xpyd.config.base import Ranked
from xpyd.config.load import load_config
from xpyd.launcher import shell_script
from xpyd.run_dir import RunDir
from xpyd.slurm import job_script, sbatch_options

ROOT = Path(__file__).parents[2]
SOURCES = [path for folder in ("src", "analysis", "experiments", "launch") for path in (ROOT / folder).rglob("*.py")]
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {"eval", "exec", "os.system", "os.popen", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
HOSTILE = (
    "$(touch ran)",
    "`touch ran`",
    "; touch ran;",
    "'; touch ran; '",
    '"; touch ran; "',
    "a\ntouch ran\n",
    "* ~ $HOME",
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_evaluated_or_given_to_a_shell(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {node.module or ""} if isinstance(node, ast.ImportFrom) else {each.name for each in node.names}
            assert not {name.split(".")[0] for name in names} & MODULES, f"{path}:{node.lineno}"
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in CALLS, f"{path}:{node.lineno}"
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("shell") != "True", f"{path}:{node.lineno}"
            assert given.get("allow_pickle") != "True", f"{path}:{node.lineno}"


def test_the_rules_above_see_what_they_forbid(tmp_path: Path) -> None:
    for text in ("import pickle", "from torch import nn\nimport torch\ntorch.load('x')", "run('x', shell=True)"):
        path = tmp_path / "bad.py"
        path.write_text(text)
        with pytest.raises(AssertionError):
            test_nothing_is_unpickled_evaluated_or_given_to_a_shell(path)


@pytest.mark.parametrize("value", HOSTILE)
def test_a_job_script_gives_every_value_as_one_word(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script runs with a stand-in for sbatch that shows its words; a value that a shell reads would make a file."""
    for name in ("XPYD_SITE", "XPYD_MPIRUN"):
        monkeypatch.setenv(name, value)
    (tmp_path / "sbatch").write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    (tmp_path / "sbatch").chmod(0o755)
    config = load_config(composed("serve", "launch=slurm"))
    assert isinstance(config, Ranked)
    slurm = replace(config.launch.slurm, account=value, qos=value, partition=value)
    folder = tmp_path / value.replace("/", "_")
    options = sbatch_options(slurm, config.placement, folder, [f"--comment={value}"])
    script = job_script(slurm, config.experiment, options, tmp_path, folder, value)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": "/nowhere"}
    done = subprocess.run(
        ["sh", "-c", script, "job.sh"], cwd=tmp_path, env=environment, capture_output=True, check=True
    )
    words = os.fsdecode(done.stdout).split("\0")
    for expected in (f"--account={value}", f"--qos={value}", f"--partition={value}", f"--comment={value}", str(folder)):
        assert expected in words
    assert not list(tmp_path.glob("**/ran")), "a value was run by the shell"


@pytest.mark.parametrize("value", HOSTILE)
def test_the_command_kept_with_a_run_is_quoted(value: str, tmp_path: Path) -> None:
    script = shell_script(["printf", "%s\\0", value])
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, check=True)
    assert os.fsdecode(done.stdout) == f"{value}\0"
    assert not list(tmp_path.iterdir())


def test_a_run_folder_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = RunDir.create(tmp_path, "serve", "private")
    finally:
        os.umask(before)
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o700
