"""The ground set: blocks of attention and of feed-forward neurons, and their prunable units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Bools, Ints, is_whole


class Unit(str, Enum):
    """The kind of unit: what is kept or dropped as one piece."""

    HEAD = "head"
    """One attention head."""
    KV_GROUP = "kv_group"
    """One key/value head together with the query heads that read it (grouped-query attention)."""
    QUERY_SLOT = "query_slot"
    """One query head of every key/value head: the same number stays for each of them."""
    NEURON_GROUP = "neuron_group"
    """Neurons of a feed-forward part, as many in each group of a block."""

    @property
    def of_attention(self) -> bool:
        """Whether such units are parts of attention rather than of a feed-forward part."""
        return self is not Unit.NEURON_GROUP

    @property
    def plural(self) -> str:
        """Several of them, in words."""
        return _PLURALS[self]


_PLURALS = {
    Unit.HEAD: "heads",
    Unit.KV_GROUP: "key/value groups",
    Unit.QUERY_SLOT: "query slots",
    Unit.NEURON_GROUP: "neuron groups",
}


class Portion(NamedTuple):
    """How much is kept, for people.

    Args:
        kept: how many of them.
        of: of how many.
        what: of what: heads, neurons, ...
    """

    kept: int
    of: int
    what: str


class Block(NamedTuple):
    """One block of a model.

    Args:
        name: its name in the model.
        units: how many prunable units it has.
        unit: their kind.
        order: for groups of neurons, the neuron at every place, group after group and all groups as wide,
            ``[width]``; None for attention, and where it is not stated because it does not matter, as in a
            table of times.
    """

    name: str
    units: int
    unit: Unit = Unit.HEAD
    order: tuple[int, ...] | None = None

    def portion(self, count: int) -> Portion:
        """What stays of it with ``count`` units: neurons where their number is stated, otherwise units."""
        if self.order is None:
            return Portion(count, self.units, self.unit.plural)
        return Portion(count * len(self.order) // self.units, len(self.order), "neurons")


@dataclass(frozen=True)
class HeadSpace:
    """The ordered blocks of a model; units carry flat indices ``0 .. n-1``, block after block.

    Blocks may differ in size. A *keep-set* over the space is a boolean array of shape ``[n]``, true
    where a unit is kept.

    Args:
        blocks: one :class:`Block`, or a plain tuple of its fields such as ``(name, units)``, per block.

    Raises:
        ValueError: if there is no block, a name repeats or is empty, a block has no unit, or an order is not
            one.
    """

    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        blocks: list[Block] = []
        seen: set[str] = set()
        for given in self.blocks:
            name, units, unit, order = Block(*given)
            if not isinstance(name, str) or not name:
                raise ValueError(f"`blocks` needs a non-empty name for every block, got {name!r}.")
            if name in seen:
                raise ValueError(
                    f"`blocks` has two blocks named {name!r}; give every block its own name."
                )
            if not is_whole(units) or units < 1:
                raise ValueError(
                    f"block {name!r} has {units!r} units; a block needs a whole number of at least 1."
                )
            seen.add(name)
            blocks.append(Block(name, int(units), Unit(unit), _order(name, units, unit, order)))
        if not blocks:
            raise ValueError("`blocks` is empty; a HeadSpace needs at least one block.")
        object.__setattr__(self, "blocks", tuple(blocks))

    @staticmethod
    def uniform(blocks: int, units: int, unit: Unit = Unit.HEAD) -> HeadSpace:
        """A space of ``blocks`` equal blocks named ``block.0``, ``block.1``, ... of ``units`` each."""
        return HeadSpace(tuple(Block(f"block.{b}", units, unit) for b in range(blocks)))

    @cached_property
    def n(self) -> int:
        """The number of units."""
        return sum(block.units for block in self.blocks)

    @property
    def kinds(self) -> list[tuple[int, Unit]]:
        """Units and their kind per block, without the names, which differ between ways to build a
        model."""
        return [(block.units, block.unit) for block in self.blocks]

    @property
    def unit(self) -> Unit | None:
        """The ``unit`` by which :func:`cahp_opt.torch.find_attention` finds the attention among these
        blocks."""
        if any(block.unit is Unit.QUERY_SLOT for block in self.blocks):
            return Unit.QUERY_SLOT
        # Only if it is asked for is all that shares a single key/value head one group.
        alone = any(block.units == 1 and block.unit is Unit.KV_GROUP for block in self.blocks)
        return Unit.KV_GROUP if alone else None

    @cached_property
    def of_attention(self) -> Bools:
        """Which blocks are attention, bool ``[blocks]``; the others are feed-forward parts."""
        found: Bools = np.array([block.unit.of_attention for block in self.blocks], dtype=np.bool_)
        found.flags.writeable = False
        return found

    def unordered(self) -> HeadSpace:
        """The same blocks without the order of their neurons, which times and counts do not depend
        on."""
        if all(block.order is None for block in self.blocks):
            return self
        return HeadSpace(tuple(block._replace(order=None) for block in self.blocks))

    def ordered_as(self, other: HeadSpace) -> HeadSpace:
        """The same blocks with the orders that only ``other`` states of them."""
        orders = {block.name: block.order for block in other.blocks}
        blocks = [
            block if block.order is not None else block._replace(order=orders.get(block.name))
            for block in self.blocks
        ]
        return self if tuple(blocks) == self.blocks else HeadSpace(tuple(blocks))

    @cached_property
    def units(self) -> Ints:
        """Units per block, shape ``[blocks]``."""
        return _frozen(np.array([block.units for block in self.blocks], dtype=np.int64))

    @cached_property
    def block_of(self) -> Ints:
        """The block of every unit, shape ``[n]``."""
        return _frozen(np.repeat(np.arange(len(self.blocks), dtype=np.int64), self.units))

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """The slice of flat indices of every block's units."""
        ends = np.cumsum(self.units)
        return tuple(slice(int(e - u), int(e)) for e, u in zip(ends, self.units, strict=True))

    def check(self, kept: npt.ArrayLike) -> Bools:
        """``kept`` as a boolean array of shape ``[n]``.

        Raises:
            ValueError: if it is not boolean or has another shape.
        """
        array = np.asarray(kept)
        if array.dtype != np.bool_ or array.shape != (self.n,):
            raise ValueError(
                f"`kept` must be a boolean array of shape [{self.n}], got {array.dtype} of shape "
                f"{list(array.shape)}; `HeadSpace.join` makes one from lists of unit ids."
            )
        return array

    def portions(self, counts: Iterable[int]) -> list[Portion]:
        """What every block keeps at these counts, ``[blocks]``, for people."""
        pairs = zip(self.blocks, counts, strict=True)
        return [block.portion(int(count)) for block, count in pairs]

    def totals(self, counts: Iterable[int]) -> list[Portion]:
        """What these counts, ``[blocks]``, keep of all attention, and of all feed-forward blocks: heads and
        neurons are not added up."""
        found, portions = list[Portion](), self.portions(counts)
        for kind in (True, False):
            own = [p for p, mine in zip(portions, self.of_attention, strict=True) if mine == kind]
            words = {part.what for part in own}
            if own:
                what = words.pop() if len(words) == 1 else "units"
                found.append(Portion(sum(p.kept for p in own), sum(p.of for p in own), what))
        return found

    def counts(self, kept: npt.ArrayLike) -> Ints:
        """The number of units each block keeps, shape ``[blocks]``; ``kept`` is bool ``[n]``."""
        return np.bincount(self.block_of[self.check(kept)], minlength=len(self.blocks)).astype(
            np.int64
        )

    def split(self, kept: npt.ArrayLike) -> dict[str, list[int]]:
        """The unit ids of a keep-set, bool ``[n]``, by block name; ids count from 0 inside the
        block."""
        array = self.check(kept)
        return {
            block.name: [int(i) for i in np.flatnonzero(array[where])]
            for block, where in zip(self.blocks, self.slices, strict=True)
        }

    def join(self, heads: Mapping[str, Iterable[int]]) -> Bools:
        """The keep-set, bool ``[n]``, with these unit ids per block; blocks not named keep nothing.

        Raises:
            ValueError: for an unknown block, or an id that lies outside its block or repeats.
        """
        where = {b.name: (b.units, s) for b, s in zip(self.blocks, self.slices, strict=True)}
        kept = np.zeros(self.n, dtype=np.bool_)
        for name, given in heads.items():
            if name not in where:
                raise ValueError(f"`heads` names the block {name!r}; known blocks: {list(where)}.")
            units, place = where[name]
            ids = list(given)
            if not all(map(is_whole, ids)) or {*ids} - {*range(units)} or len({*ids}) != len(ids):
                raise ValueError(
                    f"`heads[{name!r}]` must be distinct unit ids in 0..{units - 1}, got {ids}."
                )
            kept[place][[int(i) for i in ids]] = True
        return kept

    def to_json(self) -> list[list[Any]]:
        """Plain lists for a JSON file."""
        return [
            [b.name, b.units, b.unit.value, *([] if b.order is None else [list(b.order)])]
            for b in self.blocks
        ]

    @staticmethod
    def from_json(data: Sequence[Sequence[Any]]) -> HeadSpace:
        """The inverse of :meth:`to_json`."""
        return HeadSpace(tuple(Block(*row) for row in data))

    def difference(self, other: HeadSpace) -> str | None:
        """In words, the first thing in which ``other`` differs from this space; None if nothing.

        An order of neurons that only one of them states is no difference, nor is one inside a group.
        """
        if len(self.blocks) != len(other.blocks):
            return f"{len(self.blocks)} blocks against {len(other.blocks)}"
        for mine, theirs in zip(self.blocks, other.blocks, strict=True):
            if mine[:3] != theirs[:3]:
                return (
                    f"block {mine.name!r} of {mine.units} x {mine.unit.value} against "
                    f"block {theirs.name!r} of {theirs.units} x {theirs.unit.value}"
                )
            if None not in (mine.order, theirs.order) and _groups(mine) != _groups(theirs):
                return f"the neurons of block {mine.name!r} are grouped in two ways"
        return None


def _order(
    name: str, units: int, unit: Unit, order: Sequence[int] | None
) -> tuple[int, ...] | None:
    """The order of a block's neurons, checked."""
    if order is None:
        return None
    if Unit(unit).of_attention:
        raise ValueError(
            f"block {name!r} has an `order`, which groups neurons; its units are {Unit(unit).value}s."
        )
    found = tuple(int(neuron) for neuron in order)
    if len(found) % units or sorted(found) != list(range(len(found))) or not found:
        raise ValueError(
            f"`order` of block {name!r} must hold every neuron from 0 once, and as many for each of its "
            f"{units} units, got {len(found)} numbers."
        )
    return found


def _groups(block: Block) -> list[list[int]]:
    """The neurons of every group."""
    order, width = block.order or (), len(block.order or ()) // block.units
    return [sorted(order[i : i + width]) for i in range(0, len(order), max(width, 1))]


def _frozen(array: Ints) -> Ints:
    array.flags.writeable = False
    return array
