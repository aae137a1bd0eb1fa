"""A page as plain values, and the one HTML file that it becomes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from cahp_opt.files.records import PathLike, whole_file
from cahp_opt.version import __version__

REPORT_PAGE = "report.html"
"""Name of the page in the folder of a run, a comparison or a study."""


@dataclass(frozen=True)
class Entry:
    """A cell of a table.

    Args:
        text: what it says.
        bar: a bar beside it, as a share of the full width; None for none.
        limit: a line across the bar, as a share of the full width; None for none.
        units: a square for every unit, filled where it is kept; empty for none.
        strong: whether it stands out.
        tone: ``good`` or ``bad`` for a verdict; empty for neither.
        told: what the text means, in small type below it; empty for nothing.
    """

    text: str
    bar: float | None = None
    limit: float | None = None
    units: tuple[bool, ...] = ()
    strong: bool = False
    tone: str = ""
    told: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        caption: what it shows.
        header: a name for every column.
        rows: cells or plain texts, as many per row as there are names; the first one names the row.
        words: columns that hold words, beside the first; all others hold numbers.
        below: sentences about it.
        folded: whether it is shown on request only.
    """

    kind: ClassVar[str] = "table"

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Entry | str, ...], ...]
    words: frozenset[int] = frozenset()
    below: tuple[str, ...] = ()
    folded: bool = False

    @property
    def cells(self) -> list[list[Entry]]:
        """The rows as cells alone."""
        return [[Entry(c) if isinstance(c, str) else c for c in row] for row in self.rows]


@dataclass(frozen=True)
class Picture:
    """A picture.

    Args:
        svg: one ``svg`` element whose colours are variables of the page.
        caption: what it shows, below it.
    """

    kind: ClassVar[str] = "picture"

    svg: str
    caption: str


@dataclass(frozen=True)
class Prose:
    """Sentences: a paragraph, or a list.

    Args:
        sentences: one paragraph, or one item each.
        listed: whether they are items of a list.
    """

    kind: ClassVar[str] = "words"

    sentences: tuple[str, ...]
    listed: bool = False


@dataclass(frozen=True)
class Code:
    """What to type, line by line as it stands."""

    kind: ClassVar[str] = "code"

    text: str


Part = Table | Picture | Prose | Code


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading.

    Args:
        title: the heading.
        parts: what it holds, in order.
    """

    title: str
    parts: tuple[Part, ...]

    @property
    def anchor(self) -> str:
        """What links to it."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())


class Tile(NamedTuple):
    """One number that stands out at the top.

    Args:
        name: what it is.
        value: the number.
        told: what to compare it with.
    """

    name: str
    value: str
    told: str


@dataclass(frozen=True)
class Page:
    """One page.

    Args:
        title: of the page.
        verdict: its message, in one sentence or two.
        tiles: the numbers that matter most.
        sections: in order.
    """

    title: str
    verdict: str
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...]

    def html(self) -> str:
        """One HTML file that needs nothing else."""
        template = _ENVIRONMENT.get_template("page.html")
        return template.render(page=self, sections=self._numbered(), version=__version__) + "\n"

    def save(self, path: PathLike) -> None:
        """Write the page, whole or not at all."""
        with whole_file(path) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")

    def _numbered(self) -> list[tuple[str, Section]]:
        """The sections with an anchor that no other has."""
        found = dict[str, Section]()
        for section in self.sections:
            name = section.anchor or "section"
            while name in found:
                name += "-again"
            found[name] = section
        return list(found.items())


def sections_with(*pairs: tuple[str, Iterable[Part]]) -> tuple[Section, ...]:
    """The sections that hold anything, from titles and parts."""
    made = (Section(title, tuple(parts)) for title, parts in pairs)
    return tuple(section for section in made if section.parts)


_ENVIRONMENT = Environment(
    loader=PackageLoader("cahp_opt.reports"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
