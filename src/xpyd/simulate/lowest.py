"""The smallest of many numbers while they change one by one: a tournament, so that nobody looks at all of them."""

from __future__ import annotations

from array import array

LEFT_OUT = 1 << 62  # above every load


class Lowest:
    """``num`` numbers, all 0 at first. A change and a question take as many steps as ``num`` has binary digits."""

    def __init__(self, num: int) -> None:
        self._size = 1 << (num - 1).bit_length()
        # Node n is the smaller of 2 n and 2 n + 1; leaves are the second half.
        self._tree = array("q", bytes(16 * self._size))
        for index in range(num, self._size):
            self.leave_out(index)

    def get(self, index: int) -> int:
        return self._tree[self._size + index]

    def set(self, index: int, value: int) -> None:
        tree, node = self._tree, self._size + index
        tree[node] = value
        while node > 1:
            other = tree[node ^ 1]
            smaller = value if value < other else other
            node >>= 1
            if tree[node] == smaller:
                return
            tree[node] = value = smaller

    def leave_out(self, index: int) -> None:
        """This one is not the smallest, until it is set again."""
        self.set(index, LEFT_OUT)

    def first_from(self, begin: int) -> int:
        """Where the smallest number is: of equals the first from ``begin`` on, those before ``begin`` last."""
        tree, node = self._tree, self._size + begin
        lowest = tree[1]
        while tree[node] != lowest:  # on to what lies right of it
            while node & 1:
                node >>= 1
            node = node + 1 if node else 1  # the end: from the root
        while node < self._size:
            node *= 2
            if tree[node] != lowest:
                node += 1
        return node - self._size
