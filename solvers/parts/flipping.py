"""Single additions and removals that gain, best first."""

from __future__ import annotations

import time

import numpy as np

from cahp_opt.solvers.parts.neighbourhood import Neighbourhood


def flip_while_better(here: Neighbourhood, deadline: float) -> bool:
    """Flip the unit that gains most until none that fits gains; whether that came before the deadline.

    For a monotone objective this fills what the budget leaves.
    """
    block_of = here.space.block_of
    while time.monotonic() <= deadline:
        gains = here.tracker.gains()
        room = here.room()
        fits = np.where(here.tracker.kept, room[:, -1][block_of], room[-1][block_of])
        gains = np.where(fits, gains, -np.inf)
        best = int(gains.argmax())
        if not gains[best] > here.tolerance(np.where(fits, gains, 0.0)):
            return True
        here.flip(best)
    return False
