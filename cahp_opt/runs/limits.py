"""Limits of a study: each is one text, and the target that it states."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from cahp_opt.costs.goals import asked_latency
from cahp_opt.costs.target import Target

_NUMBER = re.compile(r"\s*(\d+) heads\s*", re.ASCII)
_SHARE = re.compile(r"\s*(\d*\.?\d+) neurons\s*", re.ASCII)


@dataclass(frozen=True)
class Limit:
    """What a selection may cost.

    Args:
        text: as it is typed, and as tables show it.
        target: the constraints.
    """

    text: str
    target: Target

    @staticmethod
    def parse(text: str, ranges: Target | None = None) -> Limit:
        """The limit that a text states: a latency such as ``0.7``, ``12.5ms`` or ``decode=12ms``; a number of
        units of attention, ``24 heads``; or a share of the neurons, ``0.5 neurons``.

        Args:
            text: the text.
            ranges: the constraints that hold beside it, such as the fewest units per block; None for the usual ones.

        Raises:
            ValueError: for any other text.
        """
        ranges = ranges or Target()
        heads, share = _NUMBER.fullmatch(text), _SHARE.fullmatch(text)
        if heads:
            return Limit(text, replace(ranges, heads=int(heads[1])))
        if share:
            return Limit(text, replace(ranges, neurons=float(share[1])))
        try:
            return Limit(text, replace(ranges, goals=(asked_latency(text),)))
        except ValueError:
            raise ValueError(
                f"`limits` holds {text!r}; a limit is a ratio of the unpruned time such as 0.7, a time such as "
                "12.5ms or decode=12ms, a number of units of attention such as `24 heads`, or a share of the "
                "neurons such as `0.5 neurons`."
            ) from None
