"""Speculative decoding for real: the same tokens and the same bytes in every arm, on one rank and on several."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.mpi.test_experiments import SMALL, plain, run_folder, tables, tokens_by_arm

ARMS = {"colocated", "colocated_speculative", "disaggregated", "disaggregated_speculative"}
WIDE = ["placement.decode_tp=2", "transfer.block_order=heads_first"]


@pytest.mark.long
@pytest.mark.mpi
@pytest.mark.parametrize("more", [[], WIDE], ids=["one rank", "a decode instance of two"])
def test_the_model_as_its_own_draft_changes_no_token_and_no_byte(tmp_path: Path, more: list[str]) -> None:
    draft = ["speculation=model", "speculation.num_tokens=2", "null_control=false", "transfer.verify=always"]
    done = plain("speculation", *SMALL, *draft, *more, f"run.root={tmp_path}")
    assert done.returncode == 0, done.stderr
    found = tables(run_folder(tmp_path, "speculation"))
    arms = tokens_by_arm(found)
    assert set(arms) == ARMS
    assert all((tokens == arms["colocated"]).all() for tokens in arms.values())
    assert len(arms["colocated"]) == 36
    blocks = found["blocks"].set_index("arm")
    assert (blocks["ledger_bytes"] == blocks["transport_bytes"]).all()
    assert blocks["ledger_bytes"]["disaggregated"] == blocks["ledger_bytes"]["disaggregated_speculative"] > 0
    assert found["transfers"]["verified"].all()
    guesses = found["speculations"].merge(found["blocks"][["block", "arm"]], on="block")
    assert set(guesses["arm"]) == {"colocated_speculative", "disaggregated_speculative"}
    assert guesses["num_guessed_tokens"].sum() == guesses["num_accepted_tokens"].sum() > 0
    # Each of six prompts of 40 tokens is computed by the draft too, on the rank that decodes.
    assert guesses.groupby("arm")["num_draft_prefill_tokens"].sum().tolist() == [240, 240]
    _several_tokens_of_a_step_share_its_stamp(found)


def _several_tokens_of_a_step_share_its_stamp(found: dict[str, pd.DataFrame]) -> None:
    speculative = found["blocks"].set_index("arm")["block"]["disaggregated_speculative"]
    tokens = found["tokens"][found["tokens"]["block"] == speculative]
    decoded = tokens[tokens["index"] > 0]
    groups = decoded.groupby(["request_id", "emitted_ns"])
    assert (groups["t_ns"].nunique() == 1).all()
    assert groups.size().max() == 3
    assert groups.ngroups == 12, "5 tokens behind the first: 3 of one step, 2 of the next"
