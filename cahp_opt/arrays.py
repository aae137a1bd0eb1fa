"""Arrays from outside, checked at the door."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cahp_opt.heads import Floats


def finite(array: npt.ArrayLike, argument: str) -> Floats:
    """``array`` as a read-only float64 array.

    Raises:
        ValueError: naming ``argument`` if it holds NaN or infinity.
    """
    result = np.array(array, dtype=np.float64)
    if not np.all(np.isfinite(result)):
        bad = int(np.count_nonzero(~np.isfinite(result)))
        raise ValueError(
            f"`{argument}` holds {bad} values that are NaN or infinite; every value must be finite."
        )
    result.flags.writeable = False
    return result
