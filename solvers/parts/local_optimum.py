"""From a keep-set to one that no small change improves."""

from __future__ import annotations

import time

from cahp_opt.solvers.parts.exchanges import Exchanges
from cahp_opt.solvers.parts.neighbourhood import Neighbourhood
from cahp_opt.solvers.parts.swaps import best_swap, interaction, swap_in_turn


def to_local_optimum(here: Neighbourhood, reach: int, deadline: float) -> tuple[int, bool]:
    """Move to a local optimum of swaps and exchanges.

    Args:
        here: the keep-set, changed in place.
        reach: how many plateau ends down and up an exchange between blocks may go.
        deadline: the ``time.monotonic()`` at which to stop.

    Returns:
        How many moves were made, and whether the search ended before the deadline.
    """
    between = interaction(here.problem.objective)
    exchanges = Exchanges(here, reach)
    moves = 0
    while time.monotonic() <= deadline:
        if between is not None:
            swap = best_swap(here, between)
            if swap is not None:
                here.swap(swap.leaving, swap.entering)
                moves += 1
                continue
        elif swap_in_turn(here, deadline):
            moves += 1
            continue
        if time.monotonic() <= deadline and not exchanges.make_one(deadline):
            return moves, time.monotonic() <= deadline
        moves += 1
    return moves, False
