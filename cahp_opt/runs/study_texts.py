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
    def drawn(self) -> int:
        """The number of texts of a draw."""
        return min(self.most, len(self.pool))

    def draw(self, seed: int) -> tuple[Example, ...]:
        """The texts of a seed, to calibrate and recover on."""
        return tuple(random.Random(seed).sample(self.pool, self.drawn))

    def checked(self) -> StudyTexts:
        """The same texts, without those of the pool that are judged on too, and with a note on these, or if every
        draw takes the whole pool.

        Raises:
            TextError: if there is nothing to judge by, or nothing left to draw from.
        """
        if not self.held_out:
            raise TextError(
                "there are no held-out texts, and a study judges models by them; hold some out with `held_out`, or "
                "name a file of their own."
            )
        judged, what = set(map(key_of, self.held_out)), self.medium.value
        left = tuple(example for example in self.pool if key_of(example) not in judged)
        if not left:
            raise TextError(
                f"all {what} to calibrate on are among those to judge by; name others for one of both."
            )
        notes, both = self.notes, len(self.pool) - len(left)
        if both:
            notes += (
                f"{both} of {len(self.pool)} {what} are among those to judge by, and are not drawn to calibrate on.",
            )
        if len(left) <= self.most:
            notes += (
                f"all {len(left)} {what} are drawn for every seed, so that the seeds differ in their order and in "
                "random choices alone.",
            )
        return replace(self, pool=left, notes=notes)

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
        apart = taken.held_out if isinstance(held_out, int) else map(_example, held_out)
        return StudyTexts(taken.calibration, tuple(apart), most).checked()

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
            held_out, notes = taken.held_out, taken.notes
        else:
            name = test
            held_out, more = _all_of(test, options.columns)
            notes = (*taken.notes, *more)
        return StudyTexts(taken.calibration, held_out, most, name, notes, taken.medium).checked()


def _all_of(source: str, columns: ColumnOptions) -> tuple[tuple[Example, ...], tuple[str, ...]]:
    found = texts_in(source, columns)
    return tuple(found), tuple(found.notes)


def _source(options: TextOptions) -> str:
    named: Sequence[object] = (options.text, options.data, options.images, options.audio)
    return next(str(each) for each in named if each is not None)


def _example(given: str | Example) -> Example:
    return Example(given) if isinstance(given, str) else given
