"""Every way of the hand-off gives the tokens of the colocated arm, and leaves rows that tell the ways apart."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from xpyd.lock import hold

PROGRAM = Path(__file__).parent / "programs" / "hand_off_modes.py"
Run = Callable[..., subprocess.CompletedProcess[str]]
REORDERED = {"pool_order": "blocks_first", "block_order": "heads_first"}
STAGING = {"staging": "auto", "pieces_in_flight": 2, "max_piece_bytes": 4096, "staging_bytes": 16384}
NUM_MOVED, NUM_LAYERS, BLOCK_SIZE, NUM_SEATS = 5, 3, 4, 2
BLOCK_BYTES = 2 * 4 * 2 * 8 * 4  # K and V, block_size, KV heads, head_dim, float32
SETTINGS = {
    "mpi": ("mpi", STAGING),
    "ucx": ("ucx", {"max_piece_bytes": 1000, **REORDERED}),
    "nixl": ("nixl", REORDERED),
}
TIMEOUT_S = 180
PATIENCE_S = TIMEOUT_S + 10  # of a worker while another plays
NUM_BLOCKS = {"mpi": 1 + 12 + 6, "ucx": 1 + 12, "nixl": 1 + 12}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Run, str], dict[str, pd.DataFrame]]:
    """The tables of a session of each kind, played once for all tests, whichever worker of xdist has them."""
    found: dict[str, dict[str, pd.DataFrame]] = {}
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def play(mpirun: Run, kind: str) -> dict[str, pd.DataFrame]:
        if kind not in found:
            transport, settings = SETTINGS[kind]
            if transport == "nixl" and find_spec("nixl_cu12") is None:
                pytest.skip("nixl is not installed: pip install 'xpyd[nixl]'")
            folder = shared / f"hand_off_{kind}"
            with hold(shared / f"{folder.name}.lock", PATIENCE_S):
                if not (folder / "PLAYED").exists():
                    folder.mkdir(exist_ok=True)
                    options = [str(PROGRAM), str(folder), transport, json.dumps(settings)]
                    done = mpirun(3, ["-m", "mpi4py", *options], TIMEOUT_S)
                    assert done.returncode == 0, done.stderr
                    (folder / "PLAYED").touch()
            found[kind] = {path.stem: pd.read_parquet(path) for path in folder.glob("*.parquet")}
        return found[kind]

    return play


Played = Callable[[Run, str], dict[str, pd.DataFrame]]
every_kind = pytest.mark.parametrize("kind", SETTINGS)


@pytest.mark.mpi
@every_kind
def test_every_way_gives_the_same_tokens(mpirun: Run, played: Played, kind: str) -> None:
    tokens = played(mpirun, kind)["tokens"].sort_values(["block", "request_id", "index"])
    blocks = {number: own[["request_id", "index", "token_id"]].to_numpy() for number, own in tokens.groupby("block")}
    assert len(blocks) == NUM_BLOCKS[kind]
    assert blocks[0].shape == (61, 3)
    for number, found in blocks.items():
        assert found.shape == blocks[0].shape, f"block {number}"
        assert (found == blocks[0]).all(), f"block {number}"


@pytest.mark.mpi
@every_kind
def test_every_hand_off_is_a_verified_row_and_bytes_agree(mpirun: Run, played: Played, kind: str) -> None:
    found = played(mpirun, kind)
    transfers, blocks = found["transfers"], found["blocks"].set_index("block")
    assert transfers["verified"].all()
    ways = transfers[transfers["block"] < 13].groupby(["direction", "mode"])
    assert len(ways) == 6
    assert (ways.size() == 2 * NUM_MOVED).all(), "once for each place that token 0 may come from"
    for number, own in transfers.groupby("block"):
        assert own["payload_bytes"].sum() == blocks.loc[number, "ledger_bytes"]
        assert blocks.loc[number, "transport_bytes"] == blocks.loc[number, "ledger_bytes"]
    lengths = transfers.merge(found["requests"], on=["block", "request_id"])["input_len"]
    num_blocks = -(-lengths // BLOCK_SIZE)
    assert (transfers["payload_bytes"] == num_blocks * NUM_LAYERS * BLOCK_BYTES).all()
    assert (transfers["reserved_ns"] <= transfers["end_ns"]).all()
    assert (transfers["begin_ns"] <= transfers["end_ns"]).all()


@pytest.mark.mpi
def test_only_a_push_queues_up_in_the_decode_pool(mpirun: Run, played: Played) -> None:
    """Two seats, five requests at once: a pull holds blocks for two of them, a push for all that are on their way."""
    found = played(mpirun, "mpi")
    ways = found["transfers"].drop_duplicates("block").set_index("block")["direction"]
    steps = found["steps"][found["steps"]["role"] == "decode"]
    steps = steps[steps["block"] < 13]
    most = steps.groupby(steps["block"].map(ways))["num_reserved_kv_blocks"].max()
    assert most["pull"] <= NUM_SEATS * 96 // BLOCK_SIZE
    assert most["push"] > NUM_SEATS * 96 // BLOCK_SIZE


@pytest.mark.mpi
def test_token_0_comes_from_where_it_is_asked_to(mpirun: Run, played: Played) -> None:
    """Blocks alternate: token 0 from prefill, then from decode. The request of one token never moves."""
    found = played(mpirun, "mpi")
    first = found["tokens"][(found["tokens"]["index"] == 0) & found["tokens"]["block"].between(1, 12)]
    moved = first[first["request_id"] != 2]
    assert (moved["rank"] == moved["block"].map(lambda block: 1 if block % 2 else 2)).all()
    assert (first[first["request_id"] == 2]["rank"] == 1).all()


@pytest.mark.mpi
def test_staging_is_off_on_or_chosen_for_a_reason(mpirun: Run, played: Played) -> None:
    found = played(mpirun, "mpi")
    staged = found["transfers"].groupby("block")["staged"]
    assert not staged.any()[:12].any()
    assert staged.all()[12:15].all()
    made = found["coalescings"].merge(found["transfers"], on=["block", "request_id"], suffixes=("", "_moved"))
    assert sorted(made["block"].unique()) == [16, 17, 18]
    assert len(made) == 3 * NUM_MOVED
    assert (made["staged"] == made["staged_moved"]).all()
    assert (made["staged"] == (made["staged_s"] < made["direct_s"])).all()
    assert made["reason"].str.contains("pieces fewer save .*, copies cost").all()
