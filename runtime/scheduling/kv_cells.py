"""Which sequence holds which cells of the KV cache, counted exactly. Pure: no model in here.

A token of a sequence takes a cell. Sequences with a common prefix share its cells, which count once. The sequence of a
running request is pinned; the others stay cached for later requests, and can be evicted.
"""


class Cells:
    """Counts of a cache of `capacity` cells: `free` ones, and `evictable` ones, which no pinned sequence holds."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.free = capacity
        self.evictable = 0
        self._unused: list[int] = list(range(capacity))
        self._owners = [0] * capacity
        self._pins = [0] * capacity
        self._held: dict[int, list[int]] = {}
        self._pinned: set[int] = set()

    def length(self, sequence: int) -> int:
        """Tokens of the sequence that are in the cache."""
        return len(self._held.get(sequence, ()))

    def append(self, sequence: int, count: int) -> None:
        """Give the sequence `count` more cells. Raises ValueError if fewer are free."""
        if count > self.free:
            raise ValueError(f"{count} cells requested, {self.free} are free")
        taken = self._unused[len(self._unused) - count :]
        del self._unused[len(self._unused) - count :]
        self.free -= count
        self.evictable += count  # until they are counted as the sequence's
        self._held.setdefault(sequence, [])
        self._add(sequence, taken)

    def share(self, source: int, target: int, count: int) -> None:
        """Let `target`, an empty sequence, hold the first `count` cells of `source` too.

        Raises ValueError if `target` holds cells.
        """
        if self._held.get(target):
            raise ValueError(f"the sequence {target} holds cells of its own")
        self._held[target] = []
        self._add(target, self._held[source][:count])

    def truncate(self, sequence: int, length: int) -> None:
        """Keep the first `length` cells of a sequence."""
        held = self._held.get(sequence, [])
        pinned = sequence in self._pinned
        for cell in held[length:]:
            self._owners[cell] -= 1
            self._pins[cell] -= pinned
            if not self._owners[cell]:
                self._unused.append(cell)
                self.free += 1
                self.evictable -= not pinned
            elif pinned and not self._pins[cell]:
                self.evictable += 1
        del held[length:]

    def pin(self, sequence: int) -> None:
        """Protect the cells of a running request from eviction."""
        if sequence in self._pinned:
            return
        self._pinned.add(sequence)
        for cell in self._held.get(sequence, ()):
            self.evictable -= not self._pins[cell]
            self._pins[cell] += 1

    def unpin(self, sequence: int) -> None:
        """Let the cells of a sequence be evicted; they stay cached while there is room."""
        if sequence not in self._pinned:
            return
        self._pinned.remove(sequence)
        for cell in self._held.get(sequence, ()):
            self._pins[cell] -= 1
            self.evictable += not self._pins[cell]

    def _add(self, sequence: int, cells: list[int]) -> None:
        pinned = sequence in self._pinned
        for cell in cells:
            self._owners[cell] += 1
            if pinned:
                self.evictable -= not self._pins[cell]
                self._pins[cell] += 1
        self._held[sequence] += cells
