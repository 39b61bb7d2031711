"""What holds for all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from xpyd.launcher import SESSION_VARIABLES, own_session

# A shell's background job ignores interrupts, and so would every program that a test starts there, and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test's killed mpirun leaves behind must not end the mpirun of a later test (``own_session``)."""
    with own_session({}) as environment:
        for name in SESSION_VARIABLES:
            monkeypatch.setenv(name, environment[name])
        yield
