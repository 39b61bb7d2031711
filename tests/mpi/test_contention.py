"""The contention experiment as a user runs it: every load is measured, and the KV of every hand-off arrives."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mpi.test_experiments import plain, run_folder, tables

SMALL = [
    "placement.allow_shared_node=true",
    "model=micro",
    "sweep.prompt_tokens=[64,256]",
    "sweep.num_decode_seqs=[1,3]",
    "sweep.prefill_tokens=64",
    "sweep.num_gaps=3",
    "sweep.num_repeats=2",
]


@pytest.mark.long
@pytest.mark.mpi
@pytest.mark.parametrize("transport", ["mpi", "nixl"])
def test_every_load_is_measured(tmp_path: Path, transport: str) -> None:
    if transport == "nixl":
        pytest.importorskip("nixl_cu12", reason="no nixl: pip install 'xpyd[nixl]'")
    done = plain("contention", *SMALL, f"transport={transport}", f"run.root={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "What receiving costs the decode step" in done.stdout
    found = tables(run_folder(tmp_path, "contention"))
    receipts, gaps = found["receipts"], found["receiving_gaps"]
    loads = receipts.groupby(["payload_bytes", "num_decode_seqs", "prefill_tokens"])["repeat"].nunique()
    assert len(loads) == 2 * 3 * 2
    assert (loads == 2).all()
    assert set(receipts["payload_bytes"]) == {64 * 512, 256 * 512}, "whole blocks of micro: 512 bytes a token"
    alone = gaps[gaps["payload_bytes"] == 0]
    assert (alone.groupby(["num_decode_seqs", "prefill_tokens", "repeat"]).size() == 3).all()
    receiving = gaps[gaps["payload_bytes"] > 0].groupby(["payload_bytes", "num_decode_seqs", "prefill_tokens"])
    assert receiving.ngroups == 2 * 2 * 2
    assert (gaps["gap_s"] > 0).all()


@pytest.mark.mpi
def test_a_sweep_that_does_not_fit_the_pool_is_refused(tmp_path: Path) -> None:
    done = plain("contention", *SMALL, "transport=mpi", "scheduler.num_kv_blocks=16", f"run.root={tmp_path}")
    assert done.returncode == 2
    assert "scheduler.num_kv_blocks=16: the sweep's largest point needs" in done.stderr
