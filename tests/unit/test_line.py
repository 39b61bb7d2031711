"""What MPI says of a send or a look from C is heard in Python."""

from __future__ import annotations

import pytest

from xpyd import native
from xpyd.mpi import MPI
from xpyd.worker.mailbox import Mailbox
from xpyd.worker.messages import Beat


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox(MPI.COMM_SELF)


def test_an_error_of_a_look_is_raised_by_the_next_one(mailbox: Mailbox) -> None:
    assert mailbox._by_c is not None
    mailbox._by_c.error = MPI.ERR_TRUNCATE
    with pytest.raises(MPI.Exception) as error:
        list(mailbox.poll())
    assert error.value.Get_error_class() == MPI.ERR_TRUNCATE
    assert list(mailbox.poll()) == []


def test_an_error_of_a_send_is_raised_when_there_is_to_be_another(mailbox: Mailbox) -> None:
    line = mailbox.line(0, Beat())
    assert line is not None
    line._c.error = MPI.ERR_RANK
    with pytest.raises(MPI.Exception) as error:
        line.room()
    assert error.value.Get_error_class() == MPI.ERR_RANK
    assert line.room(40) == 32


def test_without_compiled_code_or_mpis_functions_a_line_is_pythons(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native.kernels() is not None:
        line = mailbox.line(0, Beat())
        assert line is not None
        assert line.tell is not None
    monkeypatch.setattr("xpyd.worker.line.address_of", lambda name: None)
    other = Mailbox(MPI.COMM_SELF).line(0, Beat())
    assert other is not None
    assert other.tell is None
    other.send()
    assert other.quiet()
