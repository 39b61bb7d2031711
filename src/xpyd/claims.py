"""The ``claims`` experiment: runs what the field's claims need, each measurement once, and has the claims judged.

What a claim needs is told by ``analysis.claims``, which stands apart from the library: it is asked in a process of its
own, before and after. Measurements are runs of the other experiments, in run folders below that of the claims run;
``measurements.json`` there says what became of each. One that fails leaves its claims without a value, and the others
go on. The same command with ``run.resume=true`` goes on with what is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import yaml
from rich.console import Console

from xpyd.compose import ROOT
from xpyd.config.base import ConfigError
from xpyd.config.claims import Claims
from xpyd.environment import lone_environment
from xpyd.launcher import GRACE_S
from xpyd.resume import open_run
from xpyd.run_dir import RunDir

MANIFEST = "measurements.json"
OWN = ("claims", "run.root", "run.name", "run.resume", "launch.dry_run", "launch.wait")  # read here, not handed on
OF_ANY_PLACEMENT = ("placement.allow_shared_node", "placement.pin_cores")
INTERRUPTED = 130
POLL_S = 0.25
LEAVE_S = 2 * GRACE_S  # for a measurement to end its ranks and write what it has


@dataclass(frozen=True)
class Planned:
    """A run of another experiment; ``overrides`` are its own, ``claims`` those that read it."""

    name: str
    experiment: str
    overrides: tuple[str, ...]
    claims: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """What became of a measurement; ``error`` is empty where it was made. ``folder``: below the claims run's."""

    name: str
    experiment: str
    folder: str
    command: str
    seconds: float
    error: str


def run_claims(config: Claims, overrides: Sequence[str]) -> int:
    """Measure, judge, and return the exit code. Raises ConfigError, FileExistsError and InUseError.

    ``overrides``: the words of the command line.
    """
    planned = plan(config)
    if planned is None:
        return 2  # which claim there is not was said by who was asked
    words = handed_on(overrides, planned)
    if config.launch.dry_run:
        for each in planned:
            folder = Path(config.run.root) / "claims" / "RUN"
            print(shlex.join(command_of(each, settings_of(each, words), folder, config)))
        return 0
    run_dir = RunDir(open_run(config).path.resolve())
    if run_dir.done:
        say(f"{run_dir.path} is done (run.resume=false measures again)")
        return judge(run_dir)
    say(f"{len(planned)} measurements; run folder {run_dir.path}")
    with run_dir.lock():
        run_dir.write_json("environment.json", lone_environment(ROOT, []))
        interrupted = not _measure_all(planned, words, run_dir, config)
        code = judge(run_dir)
        if interrupted:
            say("interrupted: what was measured is judged; run.name=... run.resume=true goes on")
            return INTERRUPTED
        if not any(entry["error"] for entry in run_dir.read_json(MANIFEST)["measurements"]):
            run_dir.finish()
    return code


def plan(config: Claims) -> list[Planned] | None:
    """What is to be measured, in order; None where a claim is asked for that there is not (which is said then)."""
    only = ["--only", *config.claims.only] if config.claims.only else []
    quick = ["--quick"] if config.claims.quick else []
    command = [sys.executable, "-m", "analysis.claims", "--plan", *quick, *only]
    asked = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if asked.returncode:
        return None
    found = json.loads(asked.stdout)["measurements"]
    return [
        Planned(each["name"], each["experiment"], tuple(each["overrides"]), tuple(each["claims"])) for each in found
    ]


def handed_on(overrides: Sequence[str], planned: Sequence[Planned]) -> list[str]:
    """The user's words that measurements take. Raises ConfigError for one that none of them would read."""
    words = [word for word in overrides if not _is_own(key_of(word))]
    for word in words:
        if not any(takes(each.experiment, key_of(word)) for each in planned):
            names = ", ".join(dict.fromkeys(each.experiment for each in planned))
            raise ConfigError(
                f"{word}: none of the experiments that these claims need reads it ({names}); leave it out"
            )
    return words


def settings_of(planned: Planned, words: Sequence[str]) -> list[str]:
    """The user's words that a measurement takes, then its own, of each key the last."""
    groups = {key_of(word) for word in planned.overrides if "." not in key_of(word)}
    taken = [word for word in words if takes(planned.experiment, key_of(word)) and not _replaced(key_of(word), groups)]
    return list({key_of(word): word for word in [*taken, *planned.overrides]}.values())


def folder_of(planned: Planned, settings: Sequence[str]) -> Path:
    """Its run folder, below that of the claims run: other settings have another one, and are measured anew."""
    digest = hashlib.sha256("\n".join(settings).encode()).hexdigest()[:6]
    return Path("runs") / planned.experiment / f"{planned.name}-{digest}"


def command_of(planned: Planned, settings: Sequence[str], folder: Path, config: Claims) -> list[str]:
    """The command line of one measurement of the claims run in ``folder``."""
    name = folder_of(planned, settings).name
    own = [f"run.root='{folder / 'runs'}'", f"run.name={name}", "run.resume=true"]
    if config.launch.kind == "slurm" and takes(planned.experiment, "launch"):
        own.append("launch.wait=true")  # the next measurement is not to run beside it
    return [sys.executable, "-m", f"experiments.{planned.experiment}", *settings, *own]


def takes(experiment: str, key: str) -> bool:
    """Whether an experiment's configuration has this key, or the group that it is in."""
    composed = yaml.safe_load((ROOT / "conf" / f"{experiment}.yaml").read_text())
    groups = {name for part in composed["defaults"] if isinstance(part, dict) for name in part}
    return key.split(".")[0] in groups | set(composed)


def key_of(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def judge(run_dir: RunDir) -> int:
    """Print the table and write claims.json, claims.parquet and claims.html; 1 where nothing could be measured."""
    return subprocess.run([sys.executable, "-m", "analysis.claims", str(run_dir.path)], cwd=ROOT).returncode


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _measure_all(planned: Sequence[Planned], words: Sequence[str], run_dir: RunDir, config: Claims) -> bool:
    """One after the other, the manifest written after each; False where the user ended it."""
    entries: dict[str, Entry] = {}
    for each in planned:
        folder = folder_of(each, settings_of(each, words))
        error = "" if RunDir(run_dir.path / folder).done else "not measured yet"
        entries[each.name] = Entry(each.name, each.experiment, str(folder), "", 0.0, error)
    try:
        for number, each in enumerate(planned, start=1):
            _write(run_dir, entries)
            say(f"[{number}/{len(planned)}] {each.name} ({each.experiment}), for {', '.join(each.claims)}")
            found = entries[each.name] = _measure(each, settings_of(each, words), run_dir, config)
            say(f"    {'FAILED: ' + found.error if found.error else 'done'} after {found.seconds:.0f} s")
    except KeyboardInterrupt:
        return False
    finally:
        _write(run_dir, entries)
    return True


def _measure(planned: Planned, settings: Sequence[str], run_dir: RunDir, config: Claims) -> Entry:
    """Run one measurement to its end; its words go to a log beside the run folders."""
    folder, command = folder_of(planned, settings), command_of(planned, settings, run_dir.path, config)
    log = run_dir.path / "logs" / f"{planned.name}.log"
    log.parent.mkdir(exist_ok=True)
    begin_s = time.monotonic()
    code = _play(command, log, planned.name)
    error = "" if RunDir(run_dir.path / folder).done else f"{_last_words(log)} (exit code {code}, log {log})"
    shown = shlex.join(["python", *command[1:]])
    return Entry(planned.name, planned.experiment, str(folder), shown, time.monotonic() - begin_s, error)


def _play(command: list[str], log: Path, name: str) -> int:
    """The command's exit code. Raises KeyboardInterrupt, after it has ended the command, where this one is ended."""
    with log.open("ab") as file, _interruptible():
        begin = file.tell()
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            with Console(stderr=True).status(name) as status:
                while (code := _wait(child)) is None:
                    status.update(f"{name}: {_tail(log, begin)}")
            return code
        except KeyboardInterrupt:
            _end(child)
            raise


def _wait(child: subprocess.Popen[bytes]) -> int | None:
    try:
        return child.wait(POLL_S)
    except subprocess.TimeoutExpired:
        return None


def _end(child: subprocess.Popen[bytes]) -> None:
    """Politely, so that it ends its ranks; with the whole of its session where it does not."""
    child.terminate()
    try:
        child.wait(LEAVE_S)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM is as good as Ctrl-C: what was measured is judged."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _write(run_dir: RunDir, entries: Mapping[str, Entry]) -> None:
    """The manifest: what was made, what failed, and what has not come yet."""
    run_dir.write_json(MANIFEST, {"measurements": [asdict(entry) for entry in entries.values()]})


def _last_words(log: Path) -> str:
    """What a measurement said of its failure: its first line that names an error, else its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines[-1:] or ["it said nothing"])[0]


def _tail(log: Path, begin: int) -> str:
    """The last line since ``begin``."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "starting")


def _replaced(key: str, groups: set[str]) -> bool:
    """Whether a user's setting belongs to a group that the measurement chooses anew, such as a placement of its own."""
    group, dot, _ = key.partition(".")
    return bool(dot) and group in groups and key not in OF_ANY_PLACEMENT


def _is_own(key: str) -> bool:
    return any(key == own or key.startswith(f"{own}.") for own in OWN)
