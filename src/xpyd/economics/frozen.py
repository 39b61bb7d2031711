"""A prediction that is frozen before anything is measured: a JSON file that carries the hash of its own content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HASH = "sha256"


class FrozenError(ValueError):
    """No frozen file, or one that was changed; the message names it, and the remedy."""


def content_hash(content: Mapping[str, Any]) -> str:
    """SHA-256 over everything but the hash itself, whatever the order of keys."""
    hashed = {key: value for key, value in content.items() if key != HASH}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file that a prediction rests on."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its hash. Plain JSON types only, as what is read back is hashed anew."""
    return {**content, HASH: content_hash(content)}


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a frozen file. Raises FrozenError where it is none, or no longer what was frozen."""
    try:
        content = json.loads(path.read_text())
        kept = content[HASH]
    except OSError as error:
        raise FrozenError(f"{path}: cannot be read ({error.strerror}); give the file that the run printed") from None
    except (ValueError, KeyError, TypeError):
        made_by = "python -m experiments.break_even or experiments.plan"
        raise FrozenError(f"{path}: no frozen prediction; make one with {made_by}") from None
    found = content_hash(content)
    if found != kept:
        raise FrozenError(
            f"{path}: changed after it was frozen (it hashes to {found[:12]}, and says {str(kept)[:12]}); restore it, "
            "or predict and measure anew"
        )
    assert isinstance(content, dict)
    return content
