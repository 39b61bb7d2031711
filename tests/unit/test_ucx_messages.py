"""Messages past ucxx, from one worker to itself: content, errors, lengths, and when a request is over."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from xpyd.transport.ucx_binding import UcxxBinding
from xpyd.transport.ucx_messages import FIRST_ERROR_POINTER, Message, MessageCalls

SETTINGS = {"TLS": "tcp,self", "NET_DEVICES": "lo"}
UNREACHABLE = -6  # UCS_ERR_UNREACHABLE


@pytest.fixture
def binding() -> UcxxBinding:
    pytest.importorskip("ucxx._lib.libucxx", reason="no ucxx: pip install 'xpyd[embedded]'")
    return UcxxBinding(SETTINGS, peer_errors=False)


def wait(binding: UcxxBinding, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        binding.progress()
        assert time.monotonic() < deadline


@pytest.mark.parametrize("nbytes", [0, 1, 65_536, 3 << 20])
@pytest.mark.parametrize("early", [True, False], ids=["posted", "unexpected"])
def test_bytes_arrive_whether_the_receive_was_posted_before_or_not(
    binding: UcxxBinding, nbytes: int, early: bool
) -> None:
    endpoint = binding.endpoint(binding.address())
    leaving = np.random.default_rng(0).integers(0, 256, nbytes + 1, dtype=np.uint8)
    landing = np.zeros(nbytes + 1, np.uint8)

    def receive() -> Message:
        return binding.recv(endpoint, landing[:nbytes], landing.ctypes.data, 7)

    received = receive() if early else None
    sent = binding.send(endpoint, leaving[:nbytes], leaving.ctypes.data, 7)
    if received is None:
        for _ in range(1000):
            binding.progress()
        received = receive()
    wait(binding, lambda: sent.completed and received.completed)
    sent.check_error()
    received.check_error()
    assert (landing[:nbytes] == leaving[:nbytes]).all()
    assert landing[nbytes] == 0, "not a byte more"
    assert sent.completed, "a request that is over stays over"
    assert received.completed


@pytest.mark.parametrize(("sent_bytes", "error"), [(100, ValueError), (300, ConnectionError)])
def test_a_message_of_another_length_is_an_error(binding: UcxxBinding, sent_bytes: int, error: type[Exception]) -> None:
    endpoint = binding.endpoint(binding.address())
    buffer = np.zeros(1024, np.uint8)
    received = binding.recv(endpoint, buffer[:200], buffer.ctypes.data, 1)
    sent = binding.send(endpoint, buffer[:sent_bytes], buffer.ctypes.data + 512, 1)
    wait(binding, lambda: sent.completed and received.completed)
    with pytest.raises(error):
        received.check_error()


def test_tags_tell_messages_apart(binding: UcxxBinding) -> None:
    endpoint = binding.endpoint(binding.address())
    buffer = np.arange(8, dtype=np.uint8)
    landing = np.zeros(2, np.uint8)
    high = 5 << 32 | 1
    received = [
        binding.recv(endpoint, landing[i : i + 1], landing.ctypes.data + i, tag) for i, tag in enumerate((high, 1))
    ]
    sent = [binding.send(endpoint, buffer[3:4], buffer.ctypes.data + 3, 1)]
    wait(binding, lambda: received[1].completed)
    assert not received[0].completed
    sent.append(binding.send(endpoint, buffer[6:7], buffer.ctypes.data + 6, high))
    wait(binding, lambda: received[0].completed and all(each.completed for each in sent))
    assert landing.tolist() == [6, 3]


def test_an_error_at_once_has_the_words_of_ucx(binding: UcxxBinding) -> None:
    failed = Message(MessageCalls(binding.library()), UNREACHABLE + 2**64)
    assert failed.completed
    with pytest.raises(ConnectionError, match="unreachable"):
        failed.check_error()
    assert UNREACHABLE + 2**64 >= FIRST_ERROR_POINTER
