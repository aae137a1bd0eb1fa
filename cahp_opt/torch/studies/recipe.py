"""All that a process of a study has to know, as one value that is sent to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cahp_opt.costs.profile import Profile
from cahp_opt.files.store import digest
from cahp_opt.runs.kinds import Kinds
from cahp_opt.runs.study_plan import StudyPlan
from cahp_opt.runs.study_texts import StudyTexts
from cahp_opt.stats.pooling import Pooling
from cahp_opt.torch.studies.source import Source


@dataclass(frozen=True, eq=False)
class Recipe:
    """A study before it runs.

    Args:
        source: the model.
        identity: of its weights, as :mod:`cahp_opt.identity` has it.
        texts: what is drawn from and judged on.
        plan: the cells.
        folder: where the results are kept.
        kinds: the kinds of blocks that are pruned.
        pooling: how the model embeds texts; None for the pooling that the files beside it state.
        profile: the costs that the limits are about; None if none is about any.
    """

    source: Source
    identity: str
    texts: StudyTexts
    plan: StudyPlan
    folder: Path
    kinds: Kinds = field(default_factory=Kinds)
    pooling: Pooling | None = None
    profile: Profile | None = None

    @cached_property
    def key(self) -> str:
        """A digest of all of it, by which a process knows that it has the model already."""
        profile = None if self.profile is None else content(self.profile)
        plain = (self.identity, self.source, self.texts, repr(self.plan), self.kinds, self.pooling)
        return digest((str(self.folder), plain, profile))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def content(profile: Profile) -> object:
    """The numbers of a profile as plain values."""
    tables = {**profile.latency, **profile.resources}
    return {name: table.to_json() for name, table in sorted(tables.items())}
