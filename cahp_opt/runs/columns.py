"""Which columns of a table are the text, its pair, the label, the choices, or a conversation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar

from cahp_opt.files.text_lines import TextError
from cahp_opt.runs.options import option

_CONVERSATIONS = ("messages", "conversations", "conversation")
_PAIRS = (
    ("text", "textpair"),
    ("text", "textpairs"),
    ("text", "pair"),
    ("text", "text2"),
    ("text", "textb"),
    ("text", "sentence2"),
    ("text", "hypothesis"),
    ("text", None),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("texta", "textb"),
    ("sentencea", "sentenceb"),
    ("question", "sentence"),
    ("question", "context"),
    ("query", "passage"),
    *((name, None) for name in ("texts", "sentence", "sentences", "content", "question")),
    *((name, None) for name in ("document", "review", "prompt")),
)
"""The usual names of a text and its pair, in small letters without what is between words; the first two that
a table has are read."""
_LABELS = ("label", "labels")
_CHOICE = re.compile(r"(?:choice|ending|option)s?(\d+)", re.ASCII)
_CHOICES = ("choices", "endings", "options")
_SHOWN, _WIDE = 12, 40


@dataclass(frozen=True)
class ColumnOptions:
    """The names of the columns of a table, where they are not the usual ones."""

    topic: ClassVar[str] = "Texts"

    text_column: str | None = field(
        default=None,
        metadata=option(
            "--text-column",
            metavar="COLUMN",
            help="Column of --data with the texts. Default: text, sentence, content, question, or another "
            "usual name.",
        ),
    )
    pair_column: str | None = field(
        default=None,
        metadata=option(
            "--pair-column",
            metavar="COLUMN",
            help="Column of --data with the second texts of pairs. Default: text_pair, sentence2, hypothesis, "
            "or another usual name.",
        ),
    )
    label_column: str | None = field(
        default=None,
        metadata=option(
            "--label-column",
            metavar="COLUMN",
            help="Column of --data with the labels. Default: label or labels.",
        ),
    )
    messages_column: str | None = field(
        default=None,
        metadata=option(
            "--messages-column",
            metavar="COLUMN",
            help="Column of --data with conversations: lists of messages with role and content, which the "
            "tokenizer's chat template makes texts of. Default: messages or conversations, where there is "
            "no text.",
        ),
    )

    @property
    def given(self) -> list[str]:
        """The names of the arguments that were given."""
        return [each.name for each in fields(self) if getattr(self, each.name) is not None]

    def of(self, names: Sequence[str], source: str) -> Columns:
        """The columns of a table.

        Args:
            names: of all of its columns.
            source: the table, for sentences.

        Raises:
            TextError: if names repeat, or a column is not there.
        """
        if len(set(names)) != len(names):
            raise TextError(
                f"{source} must have columns with distinct names, got {_listed(names)}."
            )
        for argument in self.given:
            if getattr(self, argument) not in names:
                raise TextError(
                    f"{source} has no column {getattr(self, argument)!r}, which `{argument}` names; its "
                    f"columns are {_listed(names)}."
                )
        if self.messages_column is not None:
            if self.text_column or self.pair_column:
                raise TextError(
                    "`messages_column` takes the place of `text_column` and `pair_column`; give one or the other."
                )
            text, pair, chat = self.messages_column, None, True
        else:
            text, pair, chat = self._text(names, source)
        label = self.label_column or _first(_LABELS, names)
        choices = _choices(names)
        used = [name for name in (text, pair, label, *choices) if name is not None]
        if len(set(used)) < len(used):
            raise TextError(f"of {source} each column is read once, got {_listed(used)}.")
        spare = tuple(name for name in names if name not in used)
        return Columns(text, pair, label, chat, spare, choices)

    def _text(self, names: Sequence[str], source: str) -> tuple[str, str | None, bool]:
        """The text, its pair, and whether it is a conversation."""
        if self.text_column is not None:
            return self.text_column, self.pair_column, False
        named = _by_plain_name(names)
        for text, pair in _PAIRS:
            if text != "text" and (chat := _first(_CONVERSATIONS, names)) and not self.pair_column:
                return chat, None, True
            if text in named and (pair is None or pair in named):
                second = self.pair_column or (None if pair is None else named[pair])
                return named[text], second, False
        raise TextError(
            f"{source} has the columns {_listed(names)}, none of which has a usual name of texts, such as "
            "'text'; name the one with the texts by `text_column` (or, if this is a text already, write a "
            "header first)."
        )


@dataclass(frozen=True)
class Columns:
    """The columns that are read.

    Args:
        text: of the texts or conversations.
        pair: of the second texts of pairs; None for none.
        label: of the labels; None for none.
        chat: whether the texts are conversations.
        spare: all others.
        choices: of the texts to choose between: choice0, choice1 and so on, or one of lists.
    """

    text: str
    pair: str | None
    label: str | None
    chat: bool
    spare: tuple[str, ...]
    choices: tuple[str, ...] = ()

    @property
    def read(self) -> list[str]:
        """The names of all that are read."""
        told = (self.text, self.pair, self.label, *self.choices)
        return [name for name in told if name is not None]

    def notes(self, source: str) -> Iterator[str]:
        """A sentence on what is read, unless all columns are and have the names that say so."""
        parts = {
            "conversation" if self.chat else "text": self.text,
            "text_pair": self.pair,
            "label": self.label,
        }
        if (
            self.spare
            or self.choices
            or any(name not in (None, what) for what, name in parts.items())
        ):
            told = ", ".join(
                f"{name!r} is the {what}" for what, name in parts.items() if name is not None
            )
            if self.choices:
                told += f", {_listed(self.choices)} the choices"
            spare = f"; not read: {_listed(self.spare)}" if self.spare else ""
            yield f"columns of {source}: {told}{spare}."


def _choices(names: Sequence[str]) -> tuple[str, ...]:
    """The columns of choices, in the order of their numbers."""
    found = {name: _CHOICE.fullmatch(_plain(name)) for name in names}
    numbered = [(int(match[1]), name) for name, match in found.items() if match is not None]
    if len(numbered) > 1:
        return tuple(name for _, name in sorted(numbered))
    listed = _first(_CHOICES, names)
    return () if listed is None else (listed,)


def _by_plain_name(names: Sequence[str]) -> Mapping[str, str]:
    """Names by their small letters and figures; those that are written so already win."""
    ordered = sorted(names, key=lambda name: name == _plain(name))
    return {_plain(name): name for name in ordered}


def _plain(name: str) -> str:
    return "".join(c for c in name.casefold() if c not in "_- ")


def _first(usual: Sequence[str], names: Sequence[str]) -> str | None:
    named = _by_plain_name(names)
    return next((named[name] for name in usual if name in named), None)


def _listed(names: Sequence[str]) -> str:
    shown = [repr(name if len(name) <= _WIDE else f"{name[:_WIDE]}...") for name in names[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else "")
