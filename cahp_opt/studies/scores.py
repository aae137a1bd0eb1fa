"""How a model did on held-out examples, as numbers per example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import numpy as np

from cahp_opt.arrays import Floats
from cahp_opt.files.array_records import read_arrays, write_arrays
from cahp_opt.files.records import PathLike, reading
from cahp_opt.studies.figures import FIGURES, HEADLINES, Figure, Judging

_KIND, _VERSION = "cahp-scores", 1


@dataclass(frozen=True, eq=False)
class Scores:
    """Numbers per held-out example, and the figures that are computed from them.

    :data:`~cahp_opt.studies.figures.FIGURES` has the figures of every kind of output, each with the arrays
    that it reads. Sums over the tokens of an example stand beside their number, so that every figure
    follows from the arrays, on all examples or on some of them drawn again.

    Args:
        judging: what outputs were judged.
        arrays: by name, one number per example, ``[examples]``; the same order of examples in all of them.
            NaN as a ``label`` means that the example has none.

    Raises:
        ValueError: without arrays or examples, for arrays of other shapes, or for a name that no figure
            of that kind reads.
    """

    judging: Judging
    arrays: Mapping[str, Floats]

    def __post_init__(self) -> None:
        known = {name for figure in FIGURES[self.judging] for name in figure.reads}
        arrays = dict[str, Floats]()
        for name, array in self.arrays.items():
            if name not in known:
                raise ValueError(
                    f"`arrays` holds {name!r}, which no figure of {self.judging.value} reads; they read "
                    f"{', '.join(sorted(known))}."
                )
            arrays[name] = np.array(array, dtype=np.float64)
            arrays[name].flags.writeable = False
        shapes = {array.shape for array in arrays.values()}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1 or not next(iter(shapes))[0]:
            raise ValueError(
                "`arrays` must hold at least one array, all of them with one number per example, got the "
                f"shapes {[list(shape) for shape in sorted(shapes)]}."
            )
        object.__setattr__(self, "arrays", MappingProxyType(arrays))

    def __reduce__(self) -> tuple[type[Scores], tuple[Any, ...]]:
        """Copies and pickles rebuild the record: its read-only mapping cannot be copied as such."""
        told = {f.name: getattr(self, f.name) for f in fields(self)}
        return Scores, (told["judging"], dict(told["arrays"]))

    @property
    def examples(self) -> int:
        """The number of examples."""
        return len(next(iter(self.arrays.values())))

    @property
    def figures(self) -> dict[str, Figure]:
        """The figures that there are numbers for, by name, in the order of tables."""
        found = FIGURES[self.judging]
        return {f.name: f for f in found if all(name in self.arrays for name in f.reads)}

    @property
    def headline(self) -> Figure:
        """The figure that models are ranked by: accuracy, perplexity or correlation where it is known,
        otherwise the distance from the unpruned model.

        Raises:
            ValueError: if the arrays allow none of them.
        """
        found = self.figures
        for name in HEADLINES[self.judging]:
            if name in found:
                return found[name]
        raise ValueError(
            f"these scores of {self.judging.value} have no {' or '.join(HEADLINES[self.judging])}, by which "
            "models are ranked; name a figure."
        )

    @property
    def distance(self) -> Figure:
        """The figure that says how far a model's outputs are from those of the unpruned model.

        Raises:
            ValueError: if the arrays allow none.
        """
        for figure in self.figures.values():
            if not (figure.of_one_model or figure.higher_is_better):
                return figure
        raise ValueError(
            f"these scores of {self.judging.value} have no distance from the unpruned model; name a figure."
        )

    def figure(self, name: str | None = None) -> Figure:
        """A figure by name; the headline figure for None.

        Raises:
            ValueError: if there are no numbers for it.
        """
        if name is None:
            return self.headline
        if name not in self.figures:
            raise ValueError(
                f"`figure` is {name!r}, and these scores have {', '.join(self.figures) or 'none'}."
            )
        return self.figures[name]

    def value(self, name: str | None = None) -> float:
        """The value of a figure; of the headline figure for None.

        Raises:
            ValueError: if there are no numbers for it.
        """
        return float(self.figure(name).values(self.arrays, np.ones((1, self.examples)))[0])

    def values(self) -> dict[str, float]:
        """The values of all figures, by name, in the order of tables."""
        return {name: self.value(name) for name in self.figures}

    def save(self, path: PathLike) -> None:
        """Write the scores as one safetensors file."""
        write_arrays(path, _KIND, _VERSION, self.header(), self.arrays)

    def header(self) -> dict[str, Any]:
        """What the scores are of, without the arrays, as plain data for a file."""
        return {"judging": self.judging.value}

    @staticmethod
    def of(header: Mapping[str, Any], arrays: Mapping[str, Floats]) -> Scores:
        """The scores that :meth:`header` and their arrays ``[examples]`` describe.

        Raises:
            ValueError, KeyError: if they do not fit.
        """
        return Scores(Judging(header["judging"]), arrays)

    @staticmethod
    def load(path: PathLike) -> Scores:
        """Read scores.

        Raises:
            RecordError: if the file is not usable.
            OSError: if it cannot be read.
        """
        found = read_arrays(path, _KIND, _VERSION, again="judge the model again")
        with reading(path):
            return Scores.of(found.header, found.arrays)
