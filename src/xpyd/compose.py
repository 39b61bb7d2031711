"""Hydra, once: composes the points of a command line, and says what is wrong with it in our own words."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from xpyd.config.base import ConfigError, Experiment
from xpyd.config.compare import Compare
from xpyd.config.load import load_config
from xpyd.lock import InUseError
from xpyd.overrides import explain, repeated
from xpyd.placement import PlacementError
from xpyd.plan_file import with_plan
from xpyd.rival import RivalConfig, find_rival
from xpyd.run_dir import RunFolderError
from xpyd.slurm import SlurmError
from xpyd.streams import StreamError

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
PRINTING = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i"}  # flags that run nothing
PRESETS = "preset"  # a group that no experiment has a default of
USER_ERROR = 2
INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
USER_ERRORS = (ConfigError, PlacementError, SlurmError, InUseError, StreamError, RunFolderError, FileExistsError)


def compose(experiment: str, arguments: list[str], act: Callable[[Experiment, list[str]], int]) -> int:
    """Let Hydra compose ``conf/<experiment>.yaml`` with the overrides, validate, and ``act`` on each (sweep) point.

    ``act`` gets the configuration and the overrides of its point.

    Returns the worst exit code. One Ctrl-C or SIGTERM ends a sweep, not only the point that runs. Errors are printed as
    ``error: key=value: ...`` without a traceback.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    OmegaConf.register_new_resolver("groups", lambda _root_: groups(_root_.hydra.runtime.choices), replace=True)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises instead of printing: the words are ours
    overrides = [word for word in arguments if word.startswith("~") or ("=" in word and not word.startswith("-"))]
    for line in repeated(overrides):
        print(f"note: {line}", file=sys.stderr, flush=True)
    flags = [word for word in arguments if word not in overrides]  # Hydra's parser takes flags only before overrides
    if PRINTING & set(flags):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ``--help | head``: end as others do whom nobody reads
    sys.argv = [f"python -m experiments.{experiment}", *flags, *overrides]
    codes = [0]

    @hydra.main(  # type: ignore[untyped-decorator]
        version_base="1.3", config_path=str(CONF), config_name=experiment
    )
    def task(composed: Any) -> None:
        if codes[-1] in INTERRUPTED:
            return
        try:
            plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
            codes.append(act(settled(load_config(with_plan(plain))), list(HydraConfig.get().overrides.task)))
            if codes[-1] in INTERRUPTED and HydraConfig.get().mode is RunMode.MULTIRUN:
                user_error("interrupted: no further point of the sweep is run; with run.resume=true the same goes on")
        except USER_ERRORS as error:  # caught here, so that the other points of a sweep go on
            codes.append(user_error(str(error)))
        except OmegaConfBaseException as error:
            codes.append(user_error(explain(error, experiment)))

    try:
        task()
    except (HydraException, OmegaConfBaseException) as error:
        return user_error(explain(error, experiment))
    return max(codes)


def groups(chosen: Iterable[str]) -> str:
    """What ``--help`` says of the groups that an experiment reads, and of presets: a line each, with their options."""
    own = sorted({group for group in chosen if (CONF / group).is_dir() and not group.startswith("hydra")})
    return "\n".join(
        f"{sign}{group}: {', '.join(sorted(path.stem for path in (CONF / group).glob('*.yaml')))}"
        for group, sign in [*((group, "") for group in own), (PRESETS, "+")]
    )


def settled(config: Experiment) -> Experiment:
    """``rival.use=auto`` decided, once and for the whole run: what is frozen says which rival was played."""
    if not isinstance(config, Compare) or config.rival.use != "auto":
        return config
    found = find_rival(Path(config.run.root), config.colocated_fingerprint)
    if found is None:
        return replace(config, rival=RivalConfig("configured"))
    path, rival = found
    print(f"tuned rival: {path} (rival=configured leaves it out)", file=sys.stderr, flush=True)
    return replace(config, rival=rival)


def user_error(text: str, code: int = USER_ERROR) -> int:
    for line in text.splitlines():
        print(f"error: {line}", file=sys.stderr, flush=True)
    return code
