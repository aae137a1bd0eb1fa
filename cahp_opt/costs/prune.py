"""Which kinds of blocks are pruned."""

from __future__ import annotations

from enum import Enum

from cahp_opt.space import HeadSpace


class Prune(str, Enum):
    """The kinds of blocks whose units may go."""

    HEADS = "heads"
    """Attention alone."""
    NEURONS = "neurons"
    """Feed-forward parts alone."""
    BOTH = "both"
    """Both of them."""

    @property
    def heads(self) -> bool:
        """Whether units of attention may go."""
        return self is not Prune.NEURONS

    @property
    def neurons(self) -> bool:
        """Whether groups of neurons may go."""
        return self is not Prune.HEADS

    @staticmethod
    def of(*, heads: bool, neurons: bool) -> Prune:
        """The kinds of which at least one is true; both if neither is."""
        if heads == neurons:
            return Prune.BOTH
        return Prune.HEADS if heads else Prune.NEURONS

    def blocks(self, space: HeadSpace) -> HeadSpace | None:
        """The blocks of a space that are of these kinds; None if there are none."""
        wanted = space.of_attention if self is Prune.HEADS else ~space.of_attention
        if self is Prune.BOTH or wanted.all():
            return space
        blocks = tuple(b for b, want in zip(space.blocks, wanted, strict=True) if want)
        return HeadSpace(blocks) if blocks else None

    @staticmethod
    def in_space(space: HeadSpace) -> Prune:
        """The kinds of blocks that a space holds."""
        return Prune.of(
            heads=bool(space.of_attention.any()), neurons=not bool(space.of_attention.all())
        )
