"""Choosing single neurons, though a budget counts groups of them: those that are kept are put first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from cahp_opt.arrays import Bools, Floats, Ints
from cahp_opt.costs.budget import Budget
from cahp_opt.objectives import Modular
from cahp_opt.problem import Problem
from cahp_opt.runs.method import Task
from cahp_opt.selection import Selection, select
from cahp_opt.solvers import DynamicProgram
from cahp_opt.space import HeadSpace
from cahp_opt.torch.blocks.finder import FeedForwardBlock, Prunable, PrunableBlock


@dataclass(frozen=True, eq=False)
class SingleUnits:
    """The units of a model, with every neuron one of its own.

    A set of single neurons whose size is a multiple of the width of a group is a number of whole groups, once the
    neurons stand in a suitable order. So a budget over groups is met by single neurons, with group-rounded counts.
    Parts that were sliced keep their groups.

    Args:
        grouped: the blocks in the groups that budgets count.
    """

    grouped: Prunable

    @cached_property
    def prunable(self) -> Prunable:
        """The same blocks with single neurons as units."""
        return replace(self.grouped, blocks=tuple(map(_single, self.grouped.blocks)))

    @property
    def space(self) -> HeadSpace:
        """The single units."""
        return self.prunable.space

    def by_worth(self, worth: Floats) -> HeadSpace:
        """The groups with the neurons by their worth ``[single units]``, the most valuable first."""
        return self._in_order(
            [np.argsort(-own, kind="stable").tolist() for own in self.split(worth)]
        )

    def sums(self, worth: Floats, space: HeadSpace) -> Floats:
        """The worth of every unit of a space of groups, ``[n]``, as the sum over its single units.

        Args:
            worth: of the single units, ``[single units]``.
            space: the groups in any order of the neurons.
        """
        pairs = zip(self.split(worth), self._places(space), strict=True)
        return np.concatenate([own[places].sum(axis=1) for own, places in pairs])

    def split(self, values: Floats) -> list[Floats]:
        """Values of single units ``[single units]`` by block, ``[units]`` each."""
        return [values[where] for where in self.space.slices]

    def kept(self, selection: Selection) -> list[Bools]:
        """Which single units a selection of groups keeps, for every block ``[units]``."""
        found, places = list[Bools](), self._places(selection.space)
        for own, where, size in zip(places, selection.space.slices, self.space.units, strict=True):
            mask = np.zeros(size, dtype=np.bool_)
            mask[own[selection.kept[where]].reshape(-1)] = True
            found.append(mask)
        return found

    def keeping(self, kept: Sequence[Bools]) -> tuple[HeadSpace, Bools]:
        """The groups in an order in which the first ones of every block are what is kept, and the keep-set of these.

        Args:
            kept: for every block which single units stay, ``[units]``; of neurons as many as whole groups hold.

        Returns:
            The space, and bool ``[n]``.
        """
        space = self._in_order([np.argsort(~own, kind="stable").tolist() for own in kept])
        pairs = zip(kept, self._places(space), strict=True)
        return space, np.concatenate([own[places].all(axis=1) for own, places in pairs])

    def best(self, worth: Floats, budget: Budget, task: Task) -> Selection:
        """The single units that are worth most together, over :meth:`by_worth`.

        Args:
            worth: of every single unit, ``[single units]``.
            budget: over the groups.
            task: holds the seed and the time limit.
        """
        space = self.by_worth(worth)
        problem = Problem(Modular(self.sums(worth, space)), budget)
        found = select(problem, DynamicProgram(), time_limit=task.time_limit, seed=task.seed)
        return replace(found, space=space)

    def _in_order(self, orders: Sequence[Sequence[int]]) -> HeadSpace:
        """The groups with the neurons of every block in an order, ``[units]``, where they can be moved."""
        pairs = zip(self.grouped, orders, strict=True)
        return HeadSpace(
            tuple(
                block.entry._replace(order=tuple(order)) if _movable(block) else block.entry
                for block, order in pairs
            )
        )

    def _places(self, space: HeadSpace) -> list[Ints]:
        """The single units of every unit of a space of groups, for every block ``[units, width]``."""
        found = list[Ints]()
        for block, entry, size in zip(self.grouped, space.blocks, self.space.units, strict=True):
            order = entry.order if _movable(block) else None
            singles = tuple(range(size)) if order is None else order
            found.append(np.array(singles, dtype=np.int64).reshape(entry.units, -1))
        return found


def _movable(block: PrunableBlock) -> bool:
    """Whether the neurons of a block can be put into other groups."""
    return isinstance(block, FeedForwardBlock) and block.cut.whole


def _single(block: PrunableBlock) -> PrunableBlock:
    if isinstance(block, FeedForwardBlock) and block.cut.whole:
        return block.grouped(block.width)
    return block
