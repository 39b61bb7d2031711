"""Which run folder a configuration belongs to, and whether what lies there may be gone on with.

A run that may be resumed has a folder named by a digest of its configuration: the same command line finds it again.
Where results go and how ranks are started (``run``, ``launch``) change no result and are not in the digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xpyd.config.base import ConfigError, Experiment, Ranked
from xpyd.config.load import dump_config
from xpyd.run_dir import RunDir, RunFolderError

NOT_MEASURED = ("run", "launch")
BATCH_NAME = "XPYD_JOB"  # set by launch/slurm.sbatch: the name of the job, the same when it was requeued


def digest(config: Mapping[str, Any]) -> str:
    """Ten hex digits of a dumped configuration, without what changes no result."""
    measured = {key: value for key, value in config.items() if key not in NOT_MEASURED}
    return hashlib.sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest()[:10]


def readable_name(config: Experiment) -> str:
    """A folder name made from the configuration alone, such as ``tiny-1P1D-ucx-3f0c9a12de``."""
    dumped = dump_config(config)
    words = [config.model.name]
    if isinstance(config, Ranked):
        words.append(config.placement.name)
    if "transport" in dumped:
        words.append(dumped["transport"]["name"])
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join([*words, digest(dumped)]))


def resumes(config: Experiment) -> bool:
    """Whether a folder that exists may be gone on with: as configured, else for jobs that Slurm runs."""
    if config.run.resume is not None:
        return config.run.resume
    if BATCH_NAME in os.environ:
        return int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
    return isinstance(config, Ranked) and config.launch.kind == "slurm"


def run_name(config: Experiment) -> str | None:
    """The name of the run folder; None: the time, a new one for every run."""
    if config.run.name is not None:
        return config.run.name
    if BATCH_NAME in os.environ and config.run.resume is None:
        return f"{os.environ[BATCH_NAME]}-{digest(dump_config(config))}"
    return readable_name(config) if resumes(config) else None


def find_run(config: Experiment) -> RunDir | None:
    """The folder that is there already to be resumed. Raises ConfigError where it holds another configuration."""
    name = run_name(config)
    if name is None or not resumes(config):
        return None
    run_dir = RunDir(Path(config.run.root) / config.experiment / name)
    if not (run_dir.path / "config.yaml").exists():
        return None
    frozen, dumped = run_dir.read_config(), dump_config(config)
    if digest(frozen) != digest(dumped):
        changed = ", ".join(f"{key}={new!r} (there: {old!r})" for key, old, new in _differences(frozen, dumped))
        raise ConfigError(
            f"run folder {run_dir.path} holds a run of another configuration: {changed}; choose another run.name"
        )
    return run_dir


def open_run(config: Experiment) -> RunDir:
    """The run folder with the frozen configuration: a new one, or the one to resume.

    Raises FileExistsError, ConfigError (see ``find_run``), InUseError where a live attempt works in it, and
    RunFolderError where it cannot be made or written.
    """
    try:
        return _open_run(config)
    except FileExistsError:
        raise
    except OSError as error:
        raise RunFolderError(
            f"run folder: {error.strerror} ({error.filename}); make room or get leave to write there, or give another "
            "place with run.root=..."
        ) from None


def _open_run(config: Experiment) -> RunDir:
    found = find_run(config)
    if found is None:
        found = RunDir.create(Path(config.run.root), config.experiment, run_name(config))
        found.write_config(dump_config(config))
    elif not found.done:
        with found.lock():
            found.write_config(dump_config(config))  # run.* and launch.* may be new, such as a longer time limit
    return found


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, old, new) of every setting that changes a result."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            if key or name not in NOT_MEASURED:
                yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield key, old, new
