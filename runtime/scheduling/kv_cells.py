"""Which sequence holds which cells of the cache, counted exactly. Pure: no model in here.

A token of a sequence takes a cell. Sequences that begin alike share the cells of their beginning, which count once. A
sequence is pinned while somebody works with it; the others are kept for whoever comes back, and can be dropped.
"""


class Cells:
    """Counts of a cache of `capacity` cells: `free` ones, and `loose` ones, which no pinned sequence holds."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.free = capacity
        self.loose = 0
        self._unused: list[int] = list(range(capacity))
        self._owners = [0] * capacity
        self._pins = [0] * capacity
        self._held: dict[int, list[int]] = {}
        self._pinned: set[int] = set()

    def length(self, sequence: int) -> int:
        """How many tokens of the sequence are in the cache."""
        return len(self._held.get(sequence, ()))

    def append(self, sequence: int, count: int) -> None:
        """The sequence takes `count` new cells. Raises ValueError if there are not so many."""
        if count > self.free:
            raise ValueError(f"{count} cells wanted, {self.free} are free")
        taken = self._unused[len(self._unused) - count :]
        del self._unused[len(self._unused) - count :]
        self.free -= count
        self.loose += count  # until they are counted as the sequence's
        self._held.setdefault(sequence, [])
        self._add(sequence, taken)

    def share(self, source: int, target: int, count: int) -> None:
        """`target`, which holds nothing, takes the first `count` cells of `source` too."""
        if self._held.get(target):
            raise ValueError(f"the sequence {target} holds cells of its own")
        self._held[target] = []
        self._add(target, self._held[source][:count])

    def cut(self, sequence: int, length: int) -> None:
        """The sequence keeps its first `length` cells."""
        held = self._held.get(sequence, [])
        pinned = sequence in self._pinned
        for cell in held[length:]:
            self._owners[cell] -= 1
            self._pins[cell] -= pinned
            if not self._owners[cell]:
                self._unused.append(cell)
                self.free += 1
                self.loose -= not pinned
            elif pinned and not self._pins[cell]:
                self.loose += 1
        del held[length:]

    def pin(self, sequence: int) -> None:
        """Somebody works with the sequence."""
        if sequence in self._pinned:
            return
        self._pinned.add(sequence)
        for cell in self._held.get(sequence, ()):
            self.loose -= not self._pins[cell]
            self._pins[cell] += 1

    def unpin(self, sequence: int) -> None:
        """Nobody works with the sequence any more; what it holds is kept while there is room."""
        if sequence not in self._pinned:
            return
        self._pinned.remove(sequence)
        for cell in self._held.get(sequence, ()):
            self._pins[cell] -= 1
            self.loose += not self._pins[cell]

    def _add(self, sequence: int, cells: list[int]) -> None:
        pinned = sequence in self._pinned
        for cell in cells:
            self._owners[cell] += 1
            if pinned:
                self.loose -= not self._pins[cell]
                self._pins[cell] += 1
        self._held[sequence] += cells
