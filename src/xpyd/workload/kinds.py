"""How a config dataclass with a ``kind`` becomes the object of that kind, refusing settings that it would ignore.

A flat config (every kind's settings side by side, None where unset) keeps overrides short on the command line; this
check keeps it honest: exactly the settings that the chosen kind reads must be set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def build_kind(config: Any, registry: Mapping[str, type[Any]]) -> Any:
    """The dataclass ``registry[config.kind]``, made from the settings of ``config`` that have its fields' names.

    Raises ValueError when one of them is None, or when another setting is not.
    """
    chosen = registry[config.kind]
    reads = [field.name for field in fields(chosen)]
    settings = {field.name: getattr(config, field.name) for field in fields(config) if field.name != "kind"}
    for name, value in settings.items():
        if name in reads and value is None:
            raise ValueError(f"{name} is not set; kind={config.kind} needs {', '.join(reads)}")
        if name not in reads and value is not None:
            raise ValueError(
                f"{name}={value}: kind={config.kind} would ignore it; set it to null (kind={config.kind} reads "
                f"{', '.join(reads)})"
            )
    return chosen(**{name: settings[name] for name in reads})
