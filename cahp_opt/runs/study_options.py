"""The options of a study, as users state them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from cahp_opt.costs.profile import Profile
from cahp_opt.costs.prune import Prune
from cahp_opt.costs.target import Target
from cahp_opt.runs.budget_options import BlockLimits, BudgetOptions
from cahp_opt.runs.kinds import KindOptions, Kinds
from cahp_opt.runs.limits import Limit
from cahp_opt.runs.method import Method
from cahp_opt.runs.names import ObjectiveName
from cahp_opt.runs.options import option, same
from cahp_opt.runs.plan import RecoveryOptions, SelectionOptions
from cahp_opt.runs.recovery import Recovery, Weighting
from cahp_opt.runs.study_plan import KEEP_SETS

STUDY_FILE = "study.safetensors"
"""Name of the record in the folder of a study."""

LIMITS = ("0.8", "0.6")
"""Where none is given."""
METHODS = ("default", "michel", "random")
"""Where none is given."""
BASELINE = ("random",)
"""Where none is given, and objectives are."""
RECOVERIES = (Recovery.NONE, Recovery.REFIT)
"""Where none is given."""


@dataclass(frozen=True)
class StudiedLimits:
    """The limits, each of which is tried alone."""

    topic: ClassVar[str] = "Limits"

    latency: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "--latency",
            metavar="LIMIT",
            help="As in `cahp prune`; each one is a separate limit. Default: 0.8 and 0.6, without any limit.",
        ),
    )
    heads: tuple[int, ...] = field(
        default=(),
        metadata=option(
            "--heads",
            min=0,
            help="Maximum number of units (heads or key/value groups) kept in all attention blocks together. "
            "May be repeated; each one is a separate limit.",
        ),
    )
    neurons: tuple[float, ...] = field(
        default=(),
        metadata=option(
            "--neurons",
            metavar="SHARE",
            help="Maximum share of all feed-forward neurons that is kept. May be repeated; each one is a "
            "separate limit.",
        ),
    )
    blocks: BlockLimits = BlockLimits()
    latency_table: Path | None = same(BudgetOptions, "latency_table")

    def limits(self) -> tuple[Limit, ...]:
        """The limits.

        Raises:
            ValueError: for one that cannot be understood.
        """
        each = self.blocks
        ranges = Target(
            minimum=each.minimum,
            maximum=each.maximum,
            multiple_of=each.multiple_of,
            even=each.even,
        )
        texts = [
            *self.latency,
            *(f"{number} heads" for number in self.heads),
            *(f"{share:g} neurons" for share in self.neurons),
        ]
        return tuple(Limit.parse(text, ranges) for text in texts or LIMITS)

    def profile(self) -> Profile | None:
        """The profile, if one is named."""
        return Profile.load(self.latency_table) if self.latency_table else None


@dataclass(frozen=True)
class StudiedMethods:
    """The methods, and how often and how they run."""

    topic: ClassVar[str] = "Methods"

    method: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "--method",
            help="A method's name, or your own `module:Class`. May be repeated. Default: default, michel and "
            "random; random alone beside --objective.",
        ),
    )
    objective: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "--objective",
            help="An objective's name, or your own `module:Class`, to judge by how well it ranks random keep-sets and "
            "by what it chooses. May be repeated. Beside your own stand all of the library that apply, unless some "
            "of them are named.",
        ),
    )
    keep_sets: int = field(
        default=KEEP_SETS,
        metadata=option(
            "--keep-sets",
            min=2,
            help="Random keep-sets at every limit for every seed, which all objectives rank. Each is sliced, recovered "
            "and judged.",
        ),
    )
    seeds: int = field(
        default=1,
        metadata=option(
            "--seeds",
            min=1,
            help="Seeds; each draws texts of its own to calibrate and recover on.",
        ),
    )
    time_limit: float | None = same(SelectionOptions, "time_limit")
    jobs: int = field(
        default=1,
        metadata=option(
            "--jobs",
            help="Processes that work at the same time, each with the model; -1 for one per core. They take the "
            "GPUs of a machine in turns.",
        ),
    )

    def __post_init__(self) -> None:
        if self.jobs < 1 and self.jobs != -1:
            raise ValueError(
                f"`--jobs` must be at least 1, or -1 for one per core, got {self.jobs}."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the methods."""
        usual = BASELINE if self.objective else METHODS
        return tuple(dict.fromkeys(self.method or usual))

    @property
    def asked_objectives(self) -> tuple[str, ...]:
        """The names of the objectives that were asked for."""
        return tuple(dict.fromkeys(self.objective))

    @property
    def usual_objectives(self) -> tuple[ObjectiveName, ...]:
        """The objectives of the library that stand beside one's own."""
        own = [name for name in self.objective if ":" in name]
        return tuple(ObjectiveName) if own and len(own) == len(self.objective) else ()


@dataclass(frozen=True)
class StudiedRecoveries:
    """The recoveries, each of which is tried on every choice."""

    topic: ClassVar[str] = "Recovery"

    recovery: tuple[Recovery, ...] = field(
        default=(),
        metadata=option(
            "--recovery",
            help="As in `cahp prune`: none, mask-tuning, refit or finetune. May be repeated; each one is tried "
            "on every choice. Default: none and refit.",
        ),
    )
    epochs: int = same(RecoveryOptions, "epochs")
    learning_rate: float = same(RecoveryOptions, "learning_rate")
    weighting: Weighting = same(RecoveryOptions, "weighting")
    feed_forward: bool = same(RecoveryOptions, "feed_forward")

    @property
    def recoveries(self) -> tuple[Recovery, ...]:
        """The recoveries."""
        return tuple(dict.fromkeys(self.recovery or RECOVERIES))

    @property
    def recovering(self) -> RecoveryOptions:
        """How they work."""
        return RecoveryOptions(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            weighting=self.weighting,
            feed_forward=self.feed_forward,
        )


@dataclass(frozen=True)
class StudyOutput:
    """What a study judges by, and where its results go."""

    topic: ClassVar[str] = "Output"

    test_data: str | None = field(
        default=None,
        metadata=option(
            "--test-data",
            metavar="SOURCE",
            help="Texts to judge by, all of them, in place of --held-out ones: as --data.",
        ),
    )
    output_dir: Path = field(
        default=Path("study"),
        metadata=option(
            "--output-dir",
            metavar="DIR",
            help="Folder to write; results in it are not made again. Several processes and machines may share it.",
        ),
    )


def studied_kinds(
    options: KindOptions,
    limits: Iterable[Limit],
    methods: Iterable[Method],
    profile: Profile | None = None,
) -> Kinds:
    """The kinds of blocks that a study prunes: those that its limits are about, where no option names any.

    Args:
        options: the options.
        limits: the limits.
        methods: the methods; some choose one kind alone.
        profile: a ready one, which may hold one kind alone; None for none.

    Raises:
        ValueError: if something that was asked for is about the other kind alone.
    """
    restricted = next((m for m in methods if m.prunes is not Prune.BOTH), None)
    every = [options.chosen(limit.target, profile=profile, method=restricted) for limit in limits]
    kinds = {each.prune for each in every}
    if len(kinds) == 1:
        return every[0]
    return Kinds(
        Prune.BOTH, "the limits are about different ones", neuron_group=options.neuron_group
    )
