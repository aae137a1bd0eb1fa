"""Limits on the cost of the pruned model, as users state them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from cahp_opt.costs.goals import (
    Goal,
    LatencyGoal,
    ResourceGoal,
    asked_latency,
    asked_limit,
)
from cahp_opt.costs.profile import Profile
from cahp_opt.costs.quantities import SHORTHANDS
from cahp_opt.costs.target import Target
from cahp_opt.runs.options import option

DEFAULT_LATENCY = "0.8"
"""The budget where nothing is limited: this ratio of the unpruned time."""


@dataclass(frozen=True)
class BlockLimits:
    """How many units every block keeps; a maximum and multiples are about attention."""

    topic: ClassVar[str] = "Budget"

    minimum: int = field(
        default=1,
        metadata=option(
            "--minimum",
            min=0,
            help="Minimum number of units (heads or key/value groups, groups of neurons) kept in every "
            "block.",
        ),
    )
    maximum: int | None = field(
        default=None,
        metadata=option(
            "--maximum", min=0, help="Maximum number of units kept in every attention block."
        ),
    )
    multiple_of: int = field(
        default=1,
        metadata=option(
            "--multiple-of",
            min=1,
            help="Every attention block keeps a multiple of this many units, or all: some hardware is only "
            "fast at such widths. Neurons go in groups that are as wide as hardware likes anyway.",
        ),
    )
    even: bool = field(
        default=False,
        metadata=option(
            "--even",
            help="All attention blocks keep the same number of units, and all feed-forward blocks too, so that "
            "`cahp export --to stock` can write an ordinary model.",
        ),
    )


@dataclass(frozen=True)
class BudgetOptions:
    """Limits on the cost of the pruned model."""

    topic: ClassVar[str] = "Budget"

    latency: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "--latency",
            metavar="LIMIT",
            help="Largest end-to-end time, as [WORKLOADS=]RATIO|TIME: a ratio of the unpruned time such as "
            "0.8, or a time such as 12.5ms or 0.0125s; of one workload as in decode=12ms, or of several "
            "runs as in prefill+200*decode=0.8. May be repeated: all must hold.",
        ),
    )
    parameters: str | None = field(
        default=None,
        metadata=option(
            "--parameters",
            metavar="RATIO|NUMBER",
            help="Maximum number of weights of the whole model: a ratio of the unpruned model such as "
            "0.9, or a number such as 7.5M or 1.2B (billion).",
        ),
    )
    memory: str | None = field(
        default=None,
        metadata=option(
            "--memory",
            metavar="RATIO|BYTES",
            help="Maximum bytes of the weights: a ratio such as 0.9, or bytes such as 512MB or 1.5GiB.",
        ),
    )
    kv_cache: str | None = field(
        default=None,
        metadata=option(
            "--kv-cache",
            metavar="RATIO|BYTES",
            help="Maximum bytes of the key/value cache of the workload that decodes; as --memory.",
        ),
    )
    limit: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "--limit",
            metavar="NAME=AMOUNT",
            help="Any limit by its name, such as memory=0.9 or 'latency of decode=12ms'. May be repeated.",
        ),
    )
    heads: int | None = field(
        default=None,
        metadata=option(
            "--heads",
            min=0,
            help="Maximum number of units (heads or key/value groups) kept in all attention blocks "
            "together.",
        ),
    )
    neurons: float | None = field(
        default=None,
        metadata=option(
            "--neurons",
            metavar="SHARE",
            help="Maximum share of all feed-forward neurons that is kept, such as 0.5.",
        ),
    )
    blocks: BlockLimits = BlockLimits()
    latency_table: Path | None = field(
        default=None,
        metadata=option("--latency-table", metavar="FILE", help="Profile of `cahp latency`."),
    )

    def target(self) -> Target:
        """The target of these limits.

        Raises:
            ValueError: for a limit that cannot be understood.
        """
        goals: list[Goal] = [asked_latency(text) for text in self.latency]
        resources = zip(SHORTHANDS, (self.parameters, self.memory, self.kv_cache), strict=True)
        goals += [ResourceGoal.parse(name, text) for name, text in resources if text is not None]
        goals += [asked_limit(text) for text in self.limit]
        each = self.blocks
        ranges = (each.minimum, each.maximum, each.multiple_of)
        return Target(tuple(goals), self.heads, *ranges, self.neurons, each.even)

    def profile(self) -> Profile | None:
        """The profile, if one is named."""
        return Profile.load(self.latency_table) if self.latency_table else None


def limited(target: Target) -> Target:
    """The target, with the default latency if nothing limits it."""
    return target if target.limits else replace(target, goals=(LatencyGoal.parse(DEFAULT_LATENCY),))
