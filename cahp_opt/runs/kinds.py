"""Which kinds of blocks are pruned, as users state it, and what decides where they do not."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from cahp_opt.costs.profile import Profile
from cahp_opt.costs.prune import Prune
from cahp_opt.costs.quantities import KV_CACHE
from cahp_opt.costs.target import Target
from cahp_opt.runs.method import Method
from cahp_opt.runs.names import ObjectiveName, SolverName
from cahp_opt.runs.options import option, same
from cahp_opt.space import Unit

OF_ATTENTION = frozenset({"divergence", "signatures"})
"""Statistics that only attention has."""

WORDS = {
    Prune.HEADS: "attention heads",
    Prune.NEURONS: "feed-forward neurons",
    Prune.BOTH: "attention heads and feed-forward neurons",
}
"""What the units of some kinds of blocks are called."""


@dataclass(frozen=True)
class Kinds:
    """The kinds of blocks that are pruned, in which units.

    Args:
        prune: the kinds.
        why: a clause on what decided them; empty where the user named them.
        unit: as for :func:`~cahp_opt.torch.find_attention`.
        neuron_group: neurons per group; None for what suits the inner width.
    """

    prune: Prune = Prune.HEADS
    why: str = ""
    unit: Unit | None = None
    neuron_group: int | None = None

    @property
    def asked(self) -> bool:
        """Whether the user named them."""
        return not self.why

    @property
    def sentence(self) -> str:
        """The kinds, and why these."""
        return f"{WORDS[self.prune]}{f', because {self.why}' if self.why else ''}"

    def without_neurons(self, why: str) -> Kinds:
        """Attention alone, for a reason."""
        return replace(self, prune=Prune.HEADS, why=why)


@dataclass(frozen=True)
class MeasuredKinds:
    """The kinds of blocks that are measured."""

    topic: ClassVar[str] = "Units"

    prune: Prune | None = field(
        default=None,
        metadata=option(
            "--prune",
            help="What is measured, to be pruned: heads, neurons (of the feed-forward parts) or both. "
            "Default: both, which serves heads alone too; heads where attention maps are compared.",
        ),
    )
    neuron_group: int | None = field(
        default=None,
        metadata=option(
            "--neuron-group",
            min=1,
            help="Neurons that are kept or dropped as one, such as 64 or 128. Default: as many as make 8 "
            "to 16 groups, a multiple of 64 if possible.",
        ),
    )

    def measured(self, maps: str | None = None) -> Kinds:
        """The kinds to measure.

        Args:
            maps: the option that asks for attention maps; None if none does.

        Raises:
            ValueError: if neurons are asked for beside it.
        """
        _refuse_maps(maps, self.prune)
        if self.prune is not None:
            return Kinds(self.prune, neuron_group=self.neuron_group)
        if maps is not None:
            return Kinds(Prune.HEADS, f"`{maps}` compares attention maps")
        return Kinds(Prune.BOTH, "limits may be about either", neuron_group=self.neuron_group)


@dataclass(frozen=True)
class KindOptions:
    """The kinds of blocks that are pruned."""

    topic: ClassVar[str] = "Units"

    prune: Prune | None = field(
        default=None,
        metadata=option(
            "--prune",
            help="What is pruned: heads, neurons (of the feed-forward parts) or both. Default: both if a "
            "time, weights or bytes are limited; heads for a number of heads or a key/value cache, and for "
            "what compares attention maps; neurons for --neurons.",
        ),
    )
    neuron_group: int | None = same(MeasuredKinds, "neuron_group")

    def chosen(
        self,
        target: Target,
        objective: ObjectiveName | None = None,
        solver: SolverName | None = None,
        profile: Profile | None = None,
        method: Method | None = None,
    ) -> Kinds:
        """The kinds for a run.

        Args:
            target: what is limited.
            objective: the objective that was named; None for none.
            solver: the solver that was named; None for none.
            profile: a ready one, which may hold one kind alone; None for none.
            method: the method that was named; None for none.

        Raises:
            ValueError: if something else that was asked for is about the other kind alone.
        """
        maps, asked = _reader_of_maps(objective, solver), self.prune
        only = None if method is None or method.prunes is Prune.BOTH else method.prunes
        if method is not None and only is not None:
            if asked not in (None, only):
                raise ValueError(
                    f"`--method {method.name}` chooses {WORDS[only]} alone, and `--prune {asked.value}` is about "
                    "more; leave out one or the other."
                )
            if asked is None:
                why = f"`--method {method.name}` chooses no others"
                return Kinds(only, why, neuron_group=self.neuron_group if only.neurons else None)
        if asked is None:
            prune, why = _usual(target, maps, profile)
            return Kinds(prune, why, neuron_group=self.neuron_group)
        _refuse_maps(maps, asked)
        for limit, kind in _limits(target):
            if asked not in (Prune.BOTH, kind):
                raise ValueError(
                    f"`{limit}` limits {WORDS[kind]}, and `--prune {asked.value}` prunes none; leave out "
                    "one or the other."
                )
        return Kinds(asked, neuron_group=self.neuron_group)


def _refuse_maps(maps: str | None, asked: Prune | None) -> None:
    """Refuse to compare attention maps where neurons were asked for."""
    if maps is not None and asked is not None and asked.neurons:
        raise ValueError(
            f"`{maps}` compares attention maps, which neurons lack, and `--prune {asked.value}` is about "
            "neurons; leave out one or the other."
        )


def _usual(target: Target, maps: str | None, profile: Profile | None) -> tuple[Prune, str]:
    """The kinds where none are named, and a clause on what decides it."""
    on_all = [goal.option for goal in target.goals if goal.name != KV_CACHE]
    if maps is not None:
        found = Prune.HEADS, f"`{maps}` compares attention maps"
    elif on_all:
        found = target.prune, f"both count for `{on_all[0]}`"
    else:
        limits = [limit for limit, _ in _limits(target)] or [f"--maximum {target.maximum}"]
        told = " and ".join(f"`{limit}`" for limit in limits)
        found = target.prune, f"{told} limit{'s' * (len(limits) == 1)} them"
    held = Prune.BOTH if profile is None else Prune.in_space(profile.space)
    if held is not Prune.BOTH and found[0] is not held:
        return held, "the latency table holds nothing else"
    return found


def _limits(target: Target) -> list[tuple[str, Prune]]:
    """The options that limit one kind alone, with the kind."""
    limits = [(goal.option, Prune.HEADS) for goal in target.goals if goal.name == KV_CACHE]
    if target.heads is not None:
        limits.append((f"--heads {target.heads}", Prune.HEADS))
    if target.neurons is not None:
        limits.append((f"--neurons {target.neurons}", Prune.NEURONS))
    return limits


def _reader_of_maps(objective: ObjectiveName | None, solver: SolverName | None) -> str | None:
    """The option that asks for something that compares attention maps; None if none does."""
    if objective is not None and objective.needs & OF_ATTENTION:
        return f"--objective {objective.value}"
    if solver is not None and solver.value == "cahp":
        return f"--solver {solver.value}"
    return None
