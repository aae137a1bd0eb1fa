"""Random keep-sets of a study: what objectives say of them, and how the models do that keep them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cahp_opt.arrays import Bools, Floats
from cahp_opt.files.array_records import Arrays


@dataclass(frozen=True, eq=False)
class RandomSets:
    """Random keep-sets at one limit for one seed, the same for every objective and every recovery.

    Args:
        limit: the limit that they meet, as in the cells.
        seed: of the drawn texts, on which the objectives were measured, and of the keep-sets.
        kept: the units that each keeps, bool ``[sets, n]``.
        values: by objective, its value at each, ``[sets]``.
        figures: by recovery and by name of the figure, how the model with these units does, ``[sets]``;
            NaN where it could not be judged.
        unvalued: by objective without values, a sentence with the reason.
        unjudged: by recovery with a model that could not be judged, a sentence with the reason.

    Raises:
        ValueError: for arrays that do not fit each other.
    """

    limit: str
    seed: int
    kept: Bools
    values: Mapping[str, Floats]
    figures: Mapping[str, Mapping[str, Floats]]
    unvalued: Mapping[str, str] = field(default_factory=lambda: dict[str, str]())
    unjudged: Mapping[str, str] = field(default_factory=lambda: dict[str, str]())

    def __post_init__(self) -> None:
        if self.kept.ndim != 2 or not len(self.kept):
            raise ValueError(f"`kept` must have the shape [sets, n], got {list(self.kept.shape)}.")
        arrays = {f"`values` of {name}": array for name, array in self.values.items()}
        for recovery, figures in self.figures.items():
            arrays |= {f"`figures` of {recovery}, {name}": a for name, a in figures.items()}
        for what, array in arrays.items():
            if array.shape != (len(self.kept),):
                raise ValueError(
                    f"{what} must hold a number for each of {len(self.kept)} keep-sets, got the shape "
                    f"{list(array.shape)}."
                )

    @property
    def objectives(self) -> tuple[str, ...]:
        """The names of all objectives, those without values last."""
        return (*self.values, *self.unvalued)

    def header(self) -> dict[str, Any]:
        """Everything but the arrays, as plain data."""
        return {
            "limit": self.limit,
            "seed": self.seed,
            "values": list(self.values),
            "figures": [[r, name] for r, figures in self.figures.items() for name in figures],
            "unvalued": dict(self.unvalued),
            "unjudged": dict(self.unjudged),
        }

    def arrays(self) -> dict[str, Any]:
        """The arrays: ``kept``, bool ``[sets, n]``, ``values`` ``[objectives, sets]`` and ``figures``
        ``[figures, sets]``, in the order of :meth:`header`."""
        sets = len(self.kept)
        figures = [array for own in self.figures.values() for array in own.values()]
        return {
            "kept": self.kept,
            "values": np.array(list(self.values.values())).reshape(-1, sets),
            "figures": np.array(figures).reshape(-1, sets),
        }

    @staticmethod
    def from_record(header: Mapping[str, Any], arrays: Arrays) -> RandomSets:
        """The inverse of :meth:`header` and :meth:`arrays`, ``[sets, ...]`` and ``[..., sets]``.

        Raises:
            ValueError, KeyError, TypeError: if they do not fit.
        """
        figures = dict[str, dict[str, Floats]]()
        for (recovery, name), row in zip(header["figures"], arrays["figures"], strict=True):
            figures.setdefault(recovery, {})[name] = np.asarray(row, dtype=np.float64)
        return RandomSets(
            header["limit"],
            int(header["seed"]),
            np.asarray(arrays["kept"], dtype=bool),
            {
                name: np.asarray(row, dtype=np.float64)
                for name, row in zip(header["values"], arrays["values"], strict=True)
            },
            figures,
            header["unvalued"],
            header["unjudged"],
        )


def joined_sets(older: Sequence[RandomSets], newer: Sequence[RandomSets]) -> tuple[RandomSets, ...]:
    """The keep-sets of two studies: where both drew the same ones, with what either knows of them, the newer first;
    where they drew others, those of the newer one."""
    found = {(sets.limit, sets.seed): sets for sets in older}
    for sets in newer:
        old = found.get((sets.limit, sets.seed))
        if old is not None and np.array_equal(old.kept, sets.kept):
            values = {**old.values, **sets.values}
            unvalued = {**old.unvalued, **sets.unvalued}
            sets = replace(
                sets,
                values=values,
                figures={**old.figures, **sets.figures},
                unvalued={name: why for name, why in unvalued.items() if name not in values},
            )
        found[sets.limit, sets.seed] = sets
    return tuple(found.values())
