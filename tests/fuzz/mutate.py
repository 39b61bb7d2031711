"""Ways to spoil an input: a tree of plain values, a text, a file of bytes, a folder. All drawn from one generator."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, MutableMapping, MutableSequence
from pathlib import Path
from typing import Any

# What people, shells and programs leave behind where something else was meant.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.0, -0.5, 1e-308, 1e308),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "null", "true", "0", "-1", "1e3", "nan", "x" * 5000),
    *("../../etc/passwd", "/dev/null", "/", "~", "a/b", "a\\b", "a\nb", "a\x00b", "\udc80", "${run.root}", "$(id)"),
    *("`id`", "'; id; '", "é€𝄞", "\u202e", [], {}, [[]], [None], {"": None}, {"a": {"b": [1]}}, [1, "a", {}]),
)
Container = MutableMapping[Any, Any] | MutableSequence[Any]


def spoil_tree(tree: Any, rng: random.Random) -> Any:
    """A copy with one to three places changed: a value replaced, removed, added, or two exchanged."""
    made = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(made))
        if not places:
            return made
        (holder, key), (other, other_key) = rng.choice(places), rng.choice(places)
        match rng.randrange(5):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, MutableMapping):
                holder[rng.choice(("", "x", str(key) + "s", "experiment", 7))] = copy.deepcopy(rng.choice(VALUES))
            case 2:
                holder[key], other[other_key] = copy.deepcopy(other[other_key]), copy.deepcopy(holder[key])
            case _:
                holder[key] = copy.deepcopy(rng.choice(VALUES))
    return made


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key or index) below ``tree``."""
    items: Any = ()
    if isinstance(tree, MutableMapping):
        items = list(tree.items())
    elif isinstance(tree, MutableSequence):
        items = list(enumerate(tree))
    for key, value in items:
        yield tree, key
        yield from _places(value)


def spoil_bytes(content: bytes, rng: random.Random) -> bytes:
    """Cut off, turned bits, a stretch repeated, removed or replaced."""
    made = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        begin = rng.randint(0, len(made))
        end = min(len(made), begin + rng.choice((1, 2, 8, 64)))
        match rng.randrange(6):
            case 0:
                del made[begin:]
            case 1 if made:
                made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
            case 2:
                made[begin:begin] = made[begin:end] * rng.choice((1, 3, 50))
            case 3:
                del made[begin:end]
            case 4:
                made[begin:end] = rng.randbytes(end - begin)
            case _:
                made[begin:end] = str(rng.choice(VALUES)).encode("utf-8", "surrogateescape")
    return bytes(made)


def spoil_file(folder: Path, rng: random.Random) -> None:
    """One file of ``folder`` spoiled, emptied, removed, made a folder, or in the place of another."""
    path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    match rng.randrange(8):
        case 0:
            path.unlink()
        case 1:
            path.write_bytes(b"")
        case 2:
            path.unlink()
            path.mkdir()
        case 3:
            other = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
            path.write_bytes(other.read_bytes())
        case _:
            path.write_bytes(spoil_bytes(path.read_bytes(), rng))
