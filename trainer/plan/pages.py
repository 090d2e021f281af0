"""What torch's caching allocator holds of a card for tensors that come and go, at the least: whole pages, not bytes.

With expandable segments (memory/allocator.py) each pool is one range of addresses, of which pages are mapped where they are
needed: 20 MiB a page for what is larger than 1 MiB, 2 MiB for the rest. A block comes from the smallest free one that is
mapped and large enough; else pages are mapped for it, and where a limit forbids that, every page that lies free as a whole is
given back first. So a tensor that is left over keeps its page, and many of them keep many: that is what a plan has to add to
the bytes of tensors. Here pages are always given back before others are mapped, which is what the least limit comes to.

Rules of c10/cuda/CUDACachingAllocator.cpp (torch 2.11) for one stream, on which everything here is allocated.
"""

from __future__ import annotations

from bisect import bisect_left, insort

MIB = 1 << 20
SMALL, LARGE = 1 * MIB, 10 * MIB  # bytes of a block up to which it is small; from which pages are asked for by its size
SMALL_PAGE, PAGE = 2 * MIB, 20 * MIB
GRAIN = 512  # bytes that every block is a multiple of
RANGE = 1 << 44  # addresses of a pool: more than any card has bytes


class Block:
    """A run of addresses: in use, free on pages that are mapped, or without pages. Blocks of a pool are linked in order."""

    __slots__ = ("at", "before", "behind", "mapped", "pool", "size", "used")

    def __init__(self, pool: Pool, at: int, size: int, mapped: bool = True):
        self.pool, self.at, self.size, self.mapped, self.used = pool, at, size, mapped, False
        self.before: Block | None = None
        self.behind: Block | None = None

    def cut(self, size: int) -> Block:
        """The rest behind the first `size` bytes, as a block of its own and of the same kind."""
        rest = Block(self.pool, self.at + size, self.size - size, self.mapped)
        rest.before, rest.behind, self.size = self, self.behind, size
        if rest.behind is not None:
            rest.behind.before = rest
        self.behind = rest
        return rest

    def swallow(self, other: Block) -> None:
        """Grow over `other`, which stands right behind."""
        self.size, self.behind = self.size + other.size, other.behind
        if self.behind is not None:
            self.behind.before = self


class Pool:
    """held: bytes of its pages that are mapped."""

    def __init__(self, page: int):
        self.page, self.held = page, 0
        self.free: list[tuple[int, int, Block]] = []  # (size, address, block), mapped
        self.away: list[tuple[int, Block]] = []  # (address, block), without pages
        insort(self.away, (0, Block(self, 0, RANGE, mapped=False)))

    def take(self, size: int, asked: int) -> tuple[Block, int]:
        """(a block of `size` bytes, what the pool holds at most for it). asked: bytes of pages, where none is free."""
        block, most = self._fitting(size), self.held
        if block is None:
            self._give_back()
            most = self.held + asked  # what the limit is held against
            block = self._grown(asked)
        if block.size - size >= GRAIN:
            self._put(block.cut(size))
        block.used = True
        return block, max(most, self.held)

    def give(self, block: Block) -> None:
        block.used = False
        self._put(block)
        self._join(block)

    def _fitting(self, size: int) -> Block | None:
        """The smallest free block that is large enough; of several, where one can grow, the one that can grow least."""
        at = bisect_left(self.free, (size, 0))
        if at == len(self.free):
            return None
        while at + 1 < len(self.free) and _room(self.free[at + 1][2]) < _room(self.free[at][2]):
            at += 1
        return self.free.pop(at)[2]

    def _grown(self, size: int) -> Block:
        """A free block of `size` bytes or more, mapped in the first run of addresses that nobody uses and that is as long."""
        block = next(start for _, each in self.away if _run(start := _start(each)) >= size)
        if not block.mapped:
            block = self._map(block, min(block.size, size))
        while block.size < size:
            assert block.behind is not None, "a run ends behind its last block"
            block = self._map(block.behind, min(block.behind.size, size - block.size))
        self._pick(block)
        return block

    def _map(self, block: Block, size: int) -> Block:
        """Pages under the first `size` bytes. -> the free block that they are part of."""
        size = min(block.size, -(-size // self.page) * self.page)
        self.away.pop(bisect_left(self.away, (block.at,)))
        if size < block.size:
            rest = block.cut(size)
            insort(self.away, (rest.at, rest))
        block.mapped, self.held = True, self.held + size
        self._put(block)
        return self._join(block)

    def _give_back(self) -> None:
        """Every page that lies free as a whole."""
        for _, _, block in [*self.free]:
            first, end = -(-block.at // self.page) * self.page, (block.at + block.size) // self.page * self.page
            if first >= end:
                continue
            self._pick(block)
            if first > block.at:
                whole = block.cut(first - block.at)
                self._put(block)
                block = whole
            if end < block.at + block.size:
                self._put(block.cut(end - block.at))
            block.mapped, self.held = False, self.held - block.size
            before, behind = block.before, block.behind
            if before is not None and not before.mapped:
                before.swallow(block)
                block = before
            else:
                insort(self.away, (block.at, block))
            if behind is not None and not behind.mapped:
                self.away.pop(bisect_left(self.away, (behind.at,)))
                block.swallow(behind)

    def _join(self, block: Block) -> Block:
        """With free neighbours on mapped pages."""
        if block.before is not None and _idle(block.before):
            block = self._joined(block.before, block)
        if block.behind is not None and _idle(block.behind):
            block = self._joined(block, block.behind)
        return block

    def _joined(self, first: Block, second: Block) -> Block:
        self._pick(first)
        self._pick(second)
        first.swallow(second)
        self._put(first)
        return first

    def _put(self, block: Block) -> None:
        insort(self.free, (block.size, block.at, block))

    def _pick(self, block: Block) -> None:
        self.free.pop(bisect_left(self.free, (block.size, block.at)))


class Pages:
    """The pools of one stream. `most`: bytes that torch may be limited to and still has what was taken since `restart`."""

    def __init__(self) -> None:
        self.small, self.large = Pool(SMALL_PAGE), Pool(PAGE)
        self.most = 0

    def take(self, size: int) -> Block | None:
        """A block for a storage of `size` bytes, to be handed to `give`; None for none."""
        if size == 0:
            return None
        size = -(-size // GRAIN) * GRAIN
        pool, other = (self.small, self.large) if size <= SMALL else (self.large, self.small)
        whole = SMALL_PAGE if size <= SMALL else PAGE if size < LARGE else -(-size // SMALL_PAGE) * SMALL_PAGE
        block, held = pool.take(size, whole)
        self.most = max(self.most, held + other.held)
        return block

    def give(self, block: Block | None) -> None:
        if block is not None:
            block.pool.give(block)

    def restart(self) -> None:
        self.most = self.small.held + self.large.held


def _idle(block: Block) -> bool:
    return block.mapped and not block.used


def _room(block: Block) -> int:
    """Bytes of a free block, with those it could grow by."""
    return block.size + (block.behind.size if block.behind is not None and not block.behind.mapped else 0)


def _start(away: Block) -> Block:
    """Where a run of unused addresses begins: pages that are there are used first."""
    return away.before if away.before is not None and _idle(away.before) else away


def _run(block: Block) -> int:
    """Addresses from `block` on that nobody uses."""
    size, each = 0, block
    while each is not None and not each.used:
        size, each = size + each.size, each.behind
    return size
