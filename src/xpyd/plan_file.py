"""A plan that is frozen to a file, and what the experiment that plays it on real ranks takes from it.

The question stays the plan's own: model, workload, limits, scheduler and prices are read from the file, not asked for
again, and its hash goes into the configuration that is frozen into the run folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xpyd.config.base import ConfigError
from xpyd.economics.frozen import HASH, FrozenError, read_sealed

PLAN = "plan.json"
EXPERIMENT = "regret"
TAKEN = ("model", "scheduler", "transfer", "workload", "slo", "router", "prices", "plan")  # from the plan as they are
OWN_SEARCH = ("start_rps", "max_rps", "growth", "precision", "block_s", "num_repeats")  # but not what a rate must reach


def read_plan(path: Path) -> dict[str, Any]:
    """A frozen plan, by its file or the run folder of ``experiments.plan``. Raises FrozenError."""
    file = path / PLAN if path.is_dir() else path
    content = read_sealed(file)
    if "ways" not in content:
        raise FrozenError(
            f"{file}: a frozen prediction, but of no plan; give the plan.json of python -m experiments.plan"
        )
    return content


def with_plan(composed: Mapping[str, Any]) -> dict[str, Any]:
    """A composed configuration with what the experiment takes from its plan; others as they are. Raises ConfigError."""
    if composed.get("experiment") != EXPERIMENT:
        return dict(composed)
    own = composed["regret"]
    try:
        content = read_plan(Path(own["plan"]))
    except FrozenError as error:
        raise ConfigError(f"regret.plan: {error}") from None
    planned = content["config"]
    searched = {key: composed["search"][key] for key in OWN_SEARCH if composed["search"].get(key) is not None}
    return {
        **composed,
        **{key: planned[key] for key in TAKEN},
        "search": {**planned["search"], **searched},
        "placement": {**composed["placement"], "num_colocated": planned["plan"]["num_ranks"]},
        "regret": {**own, "sha256": content[HASH]},
    }
