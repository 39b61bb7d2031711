"""The typed schema of every experiment, and its validation: Hydra composes, this module refuses.

A typo, a wrong type, an out-of-range value or two settings that contradict each other fail here, before any rank
starts, with the key, the value and what is allowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from xpyd.config.base import ConfigError, Experiment
from xpyd.config.claims import Claims
from xpyd.config.compare import Compare, Saturation, Speculation
from xpyd.config.engine import Codecs, ExpertParallel, Interference, Scaling
from xpyd.config.modeled import BreakEven, Economics, Plan, Simulate
from xpyd.config.regret import Regret
from xpyd.config.serve import Calibrate, KvCache, Serve, TuneColocated
from xpyd.config.wire import CheckCluster, Contention, Handoff, Transfer, Tune

SCHEMAS: dict[str, type[Experiment]] = {
    "economics": Economics,
    "simulate": Simulate,
    "plan": Plan,
    "break_even": BreakEven,
    "codecs": Codecs,
    "transfer": Transfer,
    "tune": Tune,
    "tune_colocated": TuneColocated,
    "interference": Interference,
    "contention": Contention,
    "scaling": Scaling,
    "expert_parallel": ExpertParallel,
    "check_cluster": CheckCluster,
    "handoff": Handoff,
    "kv_cache": KvCache,
    "serve": Serve,
    "calibrate": Calibrate,
    "compare": Compare,
    "speculation": Speculation,
    "saturation": Saturation,
    "regret": Regret,
    "claims": Claims,
}


def load_config(composed: Mapping[str, Any]) -> Experiment:
    """Validate a composed configuration into the dataclass of its experiment. Raises ConfigError."""
    name = composed.get("experiment")
    if not isinstance(name, str) or name not in SCHEMAS:
        raise ConfigError(f"experiment={name!r}: allowed are {', '.join(SCHEMAS)}")
    try:
        return _adapter(name).validate_python(dict(composed))
    except ValidationError as error:
        problems = [_explain(problem, SCHEMAS[name]) for problem in error.errors()]
        raise ConfigError("\n".join(problems)) from None


def dump_config(config: Experiment) -> dict[str, Any]:
    """The configuration as plain nested dicts and lists, as frozen into the run folder."""
    dumped: dict[str, Any] = _adapter(config.experiment).dump_python(config, mode="json")
    return dumped


@cache
def _adapter(experiment: str) -> TypeAdapter[Experiment]:
    """Kept: to make one takes thirty times as long as to use it."""
    return TypeAdapter(SCHEMAS[experiment])


def _explain(problem: Any, schema: type) -> str:
    """One pydantic error as ``key=value: what is wrong``, with the allowed keys where the key is unknown."""
    key = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "unexpected_keyword_argument":
        allowed = allowed_keys(schema, problem["loc"][:-1])
        return f"{key}={problem['input']!r}: no such key; {suggest(str(problem['loc'][-1]), allowed)}"
    if problem["type"] == "missing":
        return f"{key}: required, but not set"
    if isinstance(problem["input"], dict):  # a cross-field check: its message names keys and values itself
        return f"{key}: {message}" if key else message
    return f"{key}={problem['input']!r}: {message}"


def allowed_keys(schema: Any, path: tuple[Any, ...]) -> list[str]:
    """The keys of the dataclass at ``path`` inside ``schema``; empty where there is none (a free mapping)."""
    for part in path:
        if isinstance(part, int):
            continue
        schema = _dataclass_in(get_type_hints(schema).get(str(part))) if is_dataclass(schema) else None
    return [f.name for f in fields(schema)] if is_dataclass(schema) else []


def suggest(wrong: str, allowed: list[str]) -> str:
    """``did you mean X?`` where something is near, and all that is allowed."""
    near = difflib.get_close_matches(wrong, allowed, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}allowed: {', '.join(sorted(allowed)) or 'none'}"


def _dataclass_in(hint: Any) -> Any:
    """The dataclass named by a type hint, also inside ``X | None`` and ``tuple[X, ...]``."""
    if is_dataclass(hint):
        return hint
    return next((found for inner in getattr(hint, "__args__", ()) if (found := _dataclass_in(inner))), None)
