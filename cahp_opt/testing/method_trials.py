"""What methods are tried on: units, and all that may be known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cahp_opt.costs.budget import Budget
from cahp_opt.runs.method import Method, Task
from cahp_opt.runs.recovery import Recovery
from cahp_opt.selection import Chooser
from cahp_opt.space import Block, HeadSpace, Unit
from cahp_opt.testing.statistics import random_stats


class MethodTrial(Protocol):
    """Units, and all that may be known of them; ``cahp_opt.torch.methods.trial.tiny_trial()`` makes one with a model."""

    @property
    def space(self) -> HeadSpace:
        """The units."""
        ...

    def task(self, budget: Budget, seed: int) -> Task:
        """What a method is asked for within a budget, with labelled texts."""
        ...

    def chooser(self, method: Method, task: Task) -> Chooser:
        """The function of the method, made anew of the same facts for every call."""
        ...

    def reordered(self, blocks: Sequence[int]) -> MethodTrial | None:
        """The same units with the blocks in another order; None where there is no other."""
        ...


@dataclass(frozen=True)
class RandomTrial:
    """Units with random statistics, those alone that a method needs.

    Args:
        space: the units.
        seed: of the statistics.
    """

    space: HeadSpace
    seed: int = 0

    def task(self, budget: Budget, seed: int) -> Task:
        """Every recovery, and both kinds of output, by turns of the seed."""
        recovery = list(Recovery)[seed % len(Recovery)]
        return Task(budget, recovery, embeds=seed % 2 == 1, labelled=True, seed=seed)

    def chooser(self, method: Method, task: Task) -> Chooser:
        """That of the statistics."""
        needs = method.needs(task)
        densities = needs.densities or (1.0, 0.5)
        stats = random_stats(self.space, self.seed, names=needs.statistics, densities=densities)
        return method.chooser(stats, task)

    def reordered(self, blocks: Sequence[int]) -> RandomTrial:
        """The statistics of a block depend on its name alone, so that they follow it."""
        return RandomTrial(HeadSpace(tuple(self.space.blocks[b] for b in blocks)), self.seed)


def _neurons(name: str, units: int, width: int) -> Block:
    """Groups of neurons in an order that is not that of the model."""
    return Block(name, units, Unit.NEURON_GROUP, tuple(reversed(range(units * width))))


TRIALS: tuple[RandomTrial, ...] = (
    RandomTrial(HeadSpace((Block("a", 4), Block("b", 1), Block("c", 3, Unit.KV_GROUP)))),
    RandomTrial(HeadSpace((_neurons("a", 4, 2), _neurons("b", 3, 1)))),
    RandomTrial(
        HeadSpace((Block("a", 3), _neurons("b", 4, 2), Block("c", 2), _neurons("d", 2, 3)))
    ),
)
"""Heads, neurons, and both."""
