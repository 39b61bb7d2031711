"""Control messages over MPI: non-blocking both ways, nothing waits, nothing is lost.

MPI carries these few hundred bytes; KV never goes this way (unless the ``mpi`` transport is chosen, which has a
communicator of its own).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from xpyd import native
from xpyd.mpi import MPI, PROCESS_FAILED, address_of
from xpyd.worker.line import Line, has_left
from xpyd.worker.messages import AnyMessage, Message, decode, encode
from xpyd.worker.pieces import PIECE_BYTES, Pieces, cut

TAG = 7002
ANYBODY = MPI.ANY_SOURCE


class Mailbox:
    """Sends and polls control messages on a communicator of its own (collective to create).

    A receive is always posted, and a look is one test of it, in which Open MPI takes in what has come. A probe looks
    first and takes in then: what came while this rank computed would be found by its next look.

    ``ended``: the ranks whose processes MPI reports as ended, where it can go on without them (ULFM); what is sent to
    them is lost without an error.
    """

    def __init__(self, comm: Any) -> None:
        self._comm = comm.Dup()
        self._sending: list[tuple[Any, memoryview, int]] = []  # a buffer lives until its send is complete
        self._given_up: list[tuple[Any, memoryview, int]] = []  # to lost ranks: MPI may read these buffers for ever
        self._lines: dict[tuple[int, int], Line] = {}  # by rank and size
        self._lost_lines: list[Line] = []  # to lost ranks, likewise
        self._inbox = bytearray(PIECE_BYTES)
        self._posted = self._comm.Recv_init([self._inbox, MPI.BYTE], source=ANYBODY, tag=TAG)
        self._status = MPI.Status()
        self._by_c = self._for_c()
        self._pieces = Pieces()
        self._lost: set[int] = set()  # so that a stopped rank which comes back, blocks later, disturbs nobody
        self.ended: set[int] = set()
        self._post()

    def send(self, rank: int, message: Message) -> None:
        """Send without waiting; completes as the mailbox is polled."""
        self.send_all((rank,), message)

    def send_all(self, ranks: Iterable[int], message: Message) -> None:
        """The same message to each rank, encoded once."""
        data = encode(message)
        for rank in ranks:
            for piece in cut(data):
                self._send_piece(rank, piece)

    def line(self, rank: int, message: Message) -> Line | None:
        """To send ``message`` again and again, changed in place, until this is asked for a line of its size again.

        None while too many of its size have not left yet.
        """
        if rank in self.ended:
            return None
        data = encode(message)
        if (rank, len(data)) not in self._lines:
            self._lines[rank, len(data)] = Line(self._comm, rank, TAG, data, self._note, self._by_c)
        line = self._lines[rank, len(data)]
        line.load(data)
        return line if line.room() else None

    def poll(self) -> Iterable[tuple[int, AnyMessage]]:
        """Every message that is here now, with its sender, in the order of arrival."""
        if self._sending:
            self._sending = [each for each in self._sending if not has_left(each[0], self._note)]
        return self._take_all() if self._has_come() else ()

    def give_up(self, ranks: Collection[int]) -> None:
        """These ranks are lost: nobody waits for sends to them any more, and what still comes of them is dropped."""
        self._lost |= set(ranks)
        self._given_up += [each for each in self._sending if each[2] in ranks]
        self._sending = [each for each in self._sending if each[2] not in ranks]
        self._lost_lines += [self._lines.pop(key) for key in list(self._lines) if key[0] in ranks]

    def drain(self) -> None:
        """Complete every send; call it when all peers are known to receive, but those given up."""
        while self._sending or not all(line.quiet() for line in self._lines.values()):
            self._sending = [each for each in self._sending if not has_left(each[0], self._note)]

    def close(self) -> None:
        """Collective, when every message has been polled."""
        self._posted.Cancel()
        self._posted.Wait()
        self._posted.Free()
        for line in self._lines.values():
            line.close()
        self._comm.Free()

    def _send_piece(self, rank: int, piece: memoryview) -> None:
        if rank in self.ended:
            return
        try:
            request = self._comm.Isend([piece, MPI.BYTE], dest=rank, tag=TAG)
        except MPI.Exception as error:
            self._note(error)
        else:
            if not has_left(request, self._note):  # a short message mostly has left by now
                self._sending.append((request, piece, rank))

    def _take_all(self) -> Iterator[tuple[int, AnyMessage]]:
        """Behind a piece that has come: it and all that have come since, where they complete a message."""
        come = True
        while come:
            source = int(self._status.Get_source())
            data = None
            if source >= 0:  # none where the receive was given up, as its sender has ended
                data = self._pieces.add(source, self._inbox[: self._status.Get_count(MPI.BYTE)])
            self._post()
            if data is not None and source not in self._lost:
                yield source, decode(data)
            come = self._has_come()

    def _post(self) -> None:
        try:
            self._posted.Start()
        except MPI.Exception as error:
            self._note(error)

    def _has_come(self) -> bool:
        """Whether a piece is in the inbox; ``_status`` says whose."""
        if self._by_c is not None and (self._by_c.come or self._by_c.error):
            return self._saw(self._by_c)
        try:
            return bool(self._posted.Test(self._status))
        except MPI.Exception as error:  # a rank has ended, which any source might have been: take note, and go on
            self._note(error)
            return self._has_come()

    def _for_c(self) -> native.Inbox | None:
        """For looks from C, which ``xpyd_tell`` takes; None where MPI's function is not found."""
        test = address_of("MPI_Test")
        if test is None:
            return None
        return native.Inbox(test=test, request=MPI._addressof(self._posted), status=MPI._addressof(self._status))

    def _saw(self, inbox: native.Inbox) -> bool:
        """What a look from C has found; of an error it is made again."""
        come, error = inbox.come, inbox.error
        inbox.come = inbox.error = 0
        if error:
            self._note(MPI.Exception(error))
        return bool(come) or self._has_come()

    def _note(self, error: MPI.Exception) -> None:
        """Learn which ranks have ended. Raises ``error`` again where it says something else."""
        if error.Get_error_class() not in PROCESS_FAILED:
            raise error
        self._comm.Ack_failed()
        failed, everyone = self._comm.Get_failed(), self._comm.Get_group()
        self.ended |= set(failed.Translate_ranks(None, everyone))
        failed.Free()
        everyone.Free()
