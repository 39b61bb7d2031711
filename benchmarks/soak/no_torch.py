"""Stands in for torch where no tensor is ever made: importing it, and pandas, takes longer than a trial.

``install`` comes before any other import. Whatever is asked of the module is again a stand-in; a tensor that is really
used fails.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class Absent(ModuleType):
    """A module, class, dtype or decorator of a torch that is not there."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As a decorator it returns what it decorates."""
        return args[0] if len(args) == 1 and callable(args[0]) and not isinstance(args[0], Absent) else self


class Refusal:
    """Has pyarrow do without pandas, which it would load too."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name == "pandas":
            raise ImportError(name)


def install() -> None:
    for name in ("torch", "torch.nn", "torch.nn.functional", "torch.distributed"):
        sys.modules.setdefault(name, Absent(name))
    sys.meta_path.insert(0, Refusal())
