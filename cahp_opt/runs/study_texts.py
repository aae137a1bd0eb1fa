"""The texts of a study: a pool that every seed draws from, and the held-out ones that all models are judged on."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cahp_opt.runs.columns import ColumnOptions
from cahp_opt.runs.media import Medium
from cahp_opt.runs.plan import TextOptions
from cahp_opt.runs.sources import texts_in
from cahp_opt.runs.texts import Example, TextError, key_of, split

_POOL = 16
"""The pool holds this many times the texts of a draw, or all that there are; it bounds the memory."""


@dataclass(frozen=True)
class StudyTexts:
    """The texts of a study.

    Args:
        pool: what every seed draws from.
        held_out: what all models are judged on, the same for all seeds.
        most: texts of a draw.
        name: what tables call the held-out texts.
        notes: sentences that the user should read.
        medium: what the examples are.
    """

    pool: tuple[Example, ...]
    held_out: tuple[Example, ...]
    most: int
    name: str = "held-out texts"
    notes: tuple[str, ...] = ()
    medium: Medium = Medium.TEXT

    @property
    def labelled(self) -> bool:
        """Whether all texts that are drawn from have labels."""
        return all(example.label is not None for example in self.pool)

    @property
    def drawn(self) -> int:
        """The number of texts of a draw."""
        return min(self.most, len(self.pool))

    def draw(self, seed: int) -> tuple[Example, ...]:
        """The texts of a seed, to calibrate and recover on."""
        return tuple(random.Random(seed).sample(self.pool, self.drawn))

    @staticmethod
    def of(
        texts: Iterable[str | Example],
        held_out: Iterable[str | Example] | int,
        *,
        most: int = TextOptions.max_texts,
    ) -> StudyTexts:
        """The texts of a study from texts in memory.

        Args:
            texts: the texts.
            held_out: other texts to judge by, or how many of ``texts`` to hold out.
            most: texts of a draw.

        Raises:
            ValueError: if nothing would be left to draw from, or to judge by.
        """
        given = [_example(each) for each in texts]
        back = held_out if isinstance(held_out, int) else 0
        taken = split(given, most=_POOL * most, held_out=back, seed=0)
        if isinstance(held_out, int):
            return _checked(StudyTexts(taken.calibration, taken.held_out, most))
        judged = tuple(map(_example, held_out))
        pool, notes = _apart(taken.calibration, judged, Medium.TEXT)
        return _checked(StudyTexts(pool, judged, most, notes=notes))

    @staticmethod
    def read(options: TextOptions, test: str | None = None) -> StudyTexts:
        """The texts that the options name.

        Args:
            options: the texts.
            test: a source of texts to judge by, all of them; None to hold some out.

        Raises:
            ValueError: as :meth:`TextOptions.read`, or if there is nothing to judge by.
            OSError: if a file cannot be read.
        """
        most, back = options.max_texts, options.held_out if test is None else 0
        taken = replace(options, max_texts=_POOL * most, held_out=back).read(seed=0)
        if test is None:
            name = f"texts held out of {_source(options)}"
            held_out, pool, notes = taken.held_out, taken.calibration, taken.notes
        else:
            name = test
            held_out, more = _all_of(test, options.columns)
            pool, left_out = _apart(taken.calibration, held_out, taken.medium)
            notes = (*taken.notes, *more, *left_out)
        return _checked(StudyTexts(pool, held_out, most, name, notes, taken.medium))


def _apart(
    pool: Sequence[Example], held_out: Sequence[Example], medium: Medium
) -> tuple[tuple[Example, ...], tuple[str, ...]]:
    """The examples whose texts are not judged on too, and a note on the others.

    Raises:
        TextError: if none is left.
    """
    judged = set(map(key_of, held_out))
    left = tuple(example for example in pool if key_of(example) not in judged)
    if not left:
        raise TextError(
            f"all {medium.value} to calibrate on are among those to judge by; name others for one of both."
        )
    both = len(pool) - len(left)
    told = f"{both} of {len(pool)} {medium.value} are among those to judge by, and are not drawn to calibrate on."
    return left, (told,) if both else ()


def _checked(texts: StudyTexts) -> StudyTexts:
    if not texts.held_out:
        raise TextError(
            "there are no held-out texts, and a study judges models by them; hold some out with `held_out`, or "
            "name a file of their own."
        )
    if len(texts.pool) > texts.most:
        return texts
    same = (
        f"all {len(texts.pool)} {texts.medium.value} are drawn for every seed, so that the seeds differ in their order and "
        "in random choices alone."
    )
    return replace(texts, notes=(*texts.notes, same))


def _all_of(source: str, columns: ColumnOptions) -> tuple[tuple[Example, ...], tuple[str, ...]]:
    found = texts_in(source, columns)
    return tuple(found), tuple(found.notes)


def _source(options: TextOptions) -> str:
    named: Sequence[object] = (options.text, options.data, options.images, options.audio)
    return next(str(each) for each in named if each is not None)


def _example(given: str | Example) -> Example:
    return Example(given) if isinstance(given, str) else given
