"""What is wrong with the overrides of a command line, in our own words: the key, the value and what to write instead.

Hydra's words name its search path and its grammar, which nobody who runs an experiment has to know.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from xpyd.config.load import SCHEMAS, allowed_keys, suggest

GROUP_MISSING = re.compile(r"Could not override '([^']+)'\. No match in the defaults list\.")
GROUP_TWICE = re.compile(r"Multiple values for (\S+)\. To override a value")
ADDED_TWICE = re.compile(r"Could not append to config\. An item is already at '([^']+)'")
SWEEP = re.compile(r"Ambiguous value for argument '(.+?)' 1\. ")
OPTIONAL_GROUPS = ("preset",)  # in no experiment's defaults: added with a plus


def explain(error: Exception, experiment: str) -> str:
    """An error of Hydra or OmegaConf as ``KEY: what is wrong; what to write``."""
    key = getattr(error.__cause__ or error, "full_key", None)
    if "Missing mandatory" in str(error):
        return f"{key}: required, but not set; add {key}=VALUE"
    if key and "not in struct" in str(error.__cause__ or error):
        return _unknown_key(key, experiment)
    known = (_unreadable, _unknown_option, _group_without_plus, _needless_plus, _sweep)
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return next((found for rule in known if (found := rule(error, text, experiment)) is not None), text)


def repeated(overrides: Sequence[str]) -> list[str]:
    """A line for each key that is given more than once with different values: only the last one counts."""
    given: dict[str, list[str]] = {}
    for override in overrides:
        given.setdefault(override.partition("=")[0].lstrip("+"), []).append(override)
    return [
        f"{key} is given {len(words)} times; the last one counts: {words[-1]}"
        for key, words in given.items()
        if len(set(words)) > 1
    ]


def _unknown_key(key: str, experiment: str) -> str:
    *path, last = key.split(".")
    allowed = allowed_keys(SCHEMAS[experiment], tuple(path))
    if last in allowed:
        return f"{key}: not read with these choices; leave it out"
    return f"{key}: no such key; {suggest(last, allowed if path else [*allowed, *OPTIONAL_GROUPS])}"


def _unreadable(error: Exception, text: str, experiment: str) -> str | None:
    override = getattr(error, "override", None)
    if override is None:
        return None
    key, equals, value = str(override).partition("=")
    if not equals:
        return f"{key}: overrides are KEY=VALUE; for help: python -m experiments.{experiment} --help"
    return (
        f"{key}={value}: not readable; put what holds blanks, quotes, brackets, $ or a = inside a list into quotes of "
        f'its own, and the whole into the shell\'s: \'{key}="a b"\', \'{key}=["--a=b","--c"]\''
    )


def _unknown_option(error: Exception, text: str, experiment: str) -> str | None:
    options = getattr(error, "options", None)
    missing = getattr(error, "missing_cfg_file", None)
    if missing is None or options is None:
        return None
    group, _, option = str(missing).rpartition("/")
    return f"{group}={option}: no such option; {suggest(option, list(options))}"


def _group_without_plus(error: Exception, text: str, experiment: str) -> str | None:
    if (found := GROUP_MISSING.match(text)) is None:
        return None
    group = found[1]
    if group in OPTIONAL_GROUPS:
        return f"{group}: chosen by none until you do, so write it with a plus: +{group}=..."
    return f"{group}: {experiment} does not read this group; leave it out (what it reads: --cfg job)"


def _needless_plus(error: Exception, text: str, experiment: str) -> str | None:
    found = GROUP_TWICE.match(text) or ADDED_TWICE.match(text)
    return None if found is None else f"{found[1]}: is there already, so write it without the plus: {found[1]}=..."


def _sweep(error: Exception, text: str, experiment: str) -> str | None:
    if (found := SWEEP.match(text)) is None:
        return None
    key, _, value = found[1].partition("=")
    return f"{key}={value}: several values; add -m for one run of each, or write a list: '{key}=[{value}]'"
