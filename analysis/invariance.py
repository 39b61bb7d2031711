"""Output invariance: both arms must give the same tokens for the same request; a null control says what rounding does.

A divergence is "within rounding" only where the two best logits were closer than ``ROUNDING_MARGIN`` at the first
token that differs; tokens after it follow another path and say nothing more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.load import Run

ROUNDING_MARGIN = 1e-3
PAIR_KEY = ["pair", "request_id"]


@dataclass(frozen=True)
class Invariance:
    """Requests that finished in both arms, by what their tokens say. ``divergences``: one row per one that differs."""

    arms: tuple[str, str]
    num_compared: int
    num_rounding: int
    num_different: int
    divergences: pd.DataFrame  # pair, request_id, index, token_first, token_second, margin, within_rounding

    @property
    def num_equal(self) -> int:
        return self.num_compared - self.num_rounding - self.num_different

    @property
    def finding(self) -> str:
        if not self.num_compared:
            return "nothing to compare"
        if self.num_different:
            return "DIFFERENT"
        return "same within rounding" if self.num_rounding else "same"


def check_invariance(run: Run, frame: pd.DataFrame, first: str, second: str) -> Invariance:
    """Compare the tokens of two arms, request by request; ``frame`` is the run's request frame."""
    finished = frame.loc[frame["status"] == "finished", ["block", "pair", "arm", "request_id"]]
    tokens = run.tables["tokens"].merge(finished, on=["block", "request_id"])
    columns = [*PAIR_KEY, "index", "token_id", "margin"]
    ours, theirs = (tokens.loc[tokens["arm"] == arm, columns] for arm in (first, second))
    common = ours[PAIR_KEY].drop_duplicates().merge(theirs[PAIR_KEY].drop_duplicates())
    joined = ours.merge(common).merge(theirs.merge(common), on=[*PAIR_KEY, "index"], how="outer", suffixes=("_a", "_b"))
    differing = joined[joined["token_id_a"].ne(joined["token_id_b"])]  # one arm's extra token differs from nothing
    where = differing.sort_values("index", kind="stable").drop_duplicates(PAIR_KEY).sort_values(PAIR_KEY)
    divergences = pd.DataFrame(
        {
            "pair": where["pair"],
            "request_id": where["request_id"],
            "index": where["index"],
            "token_first": where["token_id_a"],
            "token_second": where["token_id_b"],
            "margin": np.minimum(where["margin_a"], where["margin_b"]),
        }
    ).reset_index(drop=True)
    divergences["within_rounding"] = divergences["margin"] < ROUNDING_MARGIN  # NaN, a missing token: never rounding
    num_rounding = int(divergences["within_rounding"].sum())
    return Invariance((first, second), len(common), num_rounding, len(divergences) - num_rounding, divergences)
