"""What holds for all tests."""

from __future__ import annotations

import signal

# A shell's background job ignores interrupts, and so would every program that a test starts there, and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
