"""A slow and a fast link give opposite verdicts on real measurements, and the demo that shows it cleans up."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from analysis.ledger import Comparison
from analysis.load import Run, load_runs
from tests.mpi.test_experiments import tokens_by_arm
from tests.slurm.checks import check_bytes, check_environment
from tests.slurm.conftest import ROOT, wait_for
from tests.slurm.test_life import traces
from xpyd.economics.verdict import MIN_BLOCK_PAIRS, Answer

SLOW, FAST = "1gbit", "10gbit"
MAX_REPEATS = 5  # an undecided verdict asks for more pairs: repeats are pooled


@dataclass
class Demo:
    """What ``make slurm-demo`` prints and leaves; each call of ``play`` adds a repeat of both jobs."""

    folder: Path
    output: str = ""

    def command(self) -> list[str]:
        places = ["--dir", str(self.folder / "vc"), "--runs", str(self.folder / "runs")]
        return [sys.executable, "-m", "launch.slurm_demo", *places, "run.report=false"]

    def play(self) -> None:
        done = subprocess.run(self.command(), cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        self.output = done.stdout

    def run(self, rate: str) -> Run:
        """All repeats at one rate, pooled."""
        return load_runs(sorted((self.folder / "runs/compare").glob(f"*-{rate}")))[0]

    def answer(self, rate: str) -> Answer:
        return Comparison(self.run(rate)).verdicts[0].verdict.answer


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    demo = Demo(tmp_path_factory.mktemp("demo"))
    for _ in range(MAX_REPEATS):
        demo.play()
        if Answer.UNDECIDED not in (demo.answer(SLOW), demo.answer(FAST)):
            break
    return demo


@pytest.mark.long
@pytest.mark.timeout(1800)  # under a minute where the machine has nothing else to do
def test_a_slow_and_a_fast_link_give_opposite_verdicts(demo: Demo) -> None:
    slow, fast = (Comparison(demo.run(rate)).verdicts[0] for rate in (SLOW, FAST))
    assert fast.verdict.answer is Answer.SPLIT, fast.verdict.because
    assert slow.verdict.answer in (Answer.LINK_TOO_SLOW, Answer.NO_INTERFERENCE), slow.verdict.because
    assert fast.lines["ledger_s"].measured.low > 0 > slow.lines["ledger_s"].measured.high
    assert min(found.lines["ledger_s"].num_pairs for found in (slow, fast)) >= MIN_BLOCK_PAIRS


@pytest.mark.long
def test_only_the_link_differed(demo: Demo) -> None:
    """Configurations equal but for the folder's name, the same tokens everywhere, and KV that crossed the veth."""
    slow, fast = demo.run(SLOW), demo.run(FAST)
    configs = [yaml.safe_load((run.paths[0] / "config.yaml").read_text()) for run in (slow, fast)]
    assert configs[0].pop("run")["name"] != configs[1].pop("run")["name"]
    assert configs[0] == configs[1]
    for run in (slow, fast):
        arms = tokens_by_arm(run.tables)
        assert (arms["colocated"] == arms["disaggregated"]).all()
        check_environment(run.environment, {"client": ["n1"], "prefill": ["n1"], "decode": ["n2"]})
        blocks = run.tables["blocks"].query("arm == 'disaggregated'")
        for block in blocks.itertuples():
            check_bytes(blocks.loc[block.Index], run.tables["transfers"].query("block == @block.block"))


@pytest.mark.long
def test_the_table_shows_both_and_the_cluster_is_gone(demo: Demo) -> None:
    rows = {rate: re.search(rf"^│ {rate} .*$", demo.output, re.MULTILINE) for rate in (SLOW, FAST)}
    for rate, row in rows.items():
        assert row is not None, demo.output
        assert "tcp/eth0" in row[0]
        assert str(sorted((demo.folder / "runs/compare").glob(f"*-{rate}"))[-1]) in demo.output
    assert "emulated link" in demo.output
    assert not (demo.folder / "vc").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_demo_takes_its_cluster_along(tmp_path: Path, number: int) -> None:
    front = subprocess.Popen(Demo(tmp_path).command(), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert front.stderr is not None
    for line in front.stderr:
        if "running" in line:
            break
    running = traces(tmp_path / "vc")
    os.kill(front.pid, number)
    assert front.wait(60) in (128 + number, -number)
    wait_for(lambda: running.left() == ([], set()), "the end of the cluster")
    assert (tmp_path / "vc").exists() == (number == signal.SIGKILL)
