"""What every comparison on nodes must show, however its ranks were started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from tests.mpi.test_experiments import run_folder, tables, tokens_by_arm

SMALL = [
    "model=micro",
    "fabric=tcp",
    "workload.num_requests=6",
    "workload.input_len=300",
    "workload.output_len=6",
    "workload.arrival.rate_rps=20",
    "num_pairs=1",
    "faults.detect_s=30",  # a crowded machine is no fault
    "run.report=false",
]


def check_comparison(root: Path, hosts: dict[str, list[str]]) -> dict[str, pd.DataFrame]:
    """Same tokens in all arms, KV over eth0 whose counts agree, roles where ``hosts`` has them; the run's tables."""
    folder = run_folder(root, "compare")
    found = tables(folder)
    arms = tokens_by_arm(found)
    assert set(arms) == {"colocated", "disaggregated", "null"}
    for arm in ("disaggregated", "null"):
        assert (arms["colocated"] == arms[arm]).all(), f"tokens of the {arm} arm differ"
    environment = json.loads((folder / "environment.json").read_text())
    check_environment(environment, hosts)
    check_bytes(found["blocks"].query("arm == 'disaggregated'").iloc[0], found["transfers"])
    return found


def check_environment(environment: dict[str, Any], hosts: dict[str, list[str]]) -> None:
    """KV went over the nodes' own interfaces, the link is labelled, and every role is where it should be."""
    assert set(environment["routes"].values()) == {"tcp/eth0"}
    assert environment["labels"] == ["CPU", "emulated link"]
    by_role: dict[str, list[str]] = {}
    for rank in environment["ranks"]:
        by_role.setdefault(rank["role"], []).append(rank["node"])
    assert by_role == hosts


def check_bytes(block: pd.Series[Any], transfers: pd.DataFrame) -> None:
    """The ledger, the transport and the interfaces agree on the bytes of a block."""
    assert block["ledger_bytes"] == block["transport_bytes"] == transfers["payload_bytes"].sum()
    assert block["ledger_bytes"] > 1e5
    assert block["ledger_bytes"] <= block["interface_bytes"] <= 1.5 * block["ledger_bytes"]
