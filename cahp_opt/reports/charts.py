"""Charts of matplotlib as SVG inside a page, in colours that follow the page into light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any
from xml.etree import ElementTree

from cahp_opt.reports.page import Picture

INK, MUTED, LINE, SURFACE = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
"""Colours that stand for those of the page: of words, of what is less important, of lines, of the ground."""

SERIES = tuple(f"#0a0c{i:02x}" for i in range(8))
"""The same for what is compared."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")
"""Shapes, so that nobody needs the colours."""

WIDTH = 4.8
"""Inches: as wide as makes words of a usual size readable on a phone."""

_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", SURFACE: "surface"} | {
    colour: f"series-{i}" for i, colour in enumerate(SERIES)
}
_STYLE = {
    "svg.fonttype": "none",  # words stay words: they can be read aloud, found and copied
    "text.parse_math": False,  # a dollar in a name is one
    "font.size": 9.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.markersize": 5.5,
}
_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}href"

MISSING = "Charts need matplotlib; install it with `pip install 'cahp-opt[plots]'` and write the page again."
"""What a page says in place of its charts."""


def charts_missing() -> bool:
    """Whether matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        return True
    return False


def look(number: int) -> dict[str, Any]:
    """The colour and the shape of one of several series."""
    return {"color": SERIES[number % len(SERIES)], "marker": MARKERS[number % len(MARKERS)]}


def chart(
    name: str,
    caption: str,
    description: str,
    draw: Callable[[Any, Any], None],
    *,
    height: float,
    grid: tuple[int, int] = (1, 1),
) -> Picture:
    """One chart, drawn by a function.

    Args:
        name: of the chart, which no other of the page has.
        caption: what it shows.
        description: the same for those who cannot see it.
        draw: called with the figure and its axes: one, or an array of ``grid`` for more.
        height: in inches.
        grid: rows and columns of axes.

    Raises:
        ImportError: without matplotlib.
    """
    import matplotlib as library
    from matplotlib.figure import Figure  # no pyplot: no window, nothing that stays open

    matplotlib: Any = library
    style = _STYLE | {"svg.hashsalt": name}
    with matplotlib.rc_context(style):
        figure: Any = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots(*grid)
        draw(figure, axes)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return Picture(_inlined(buffer.getvalue(), name, caption, description), caption)


def _inlined(svg: bytes, name: str, caption: str, description: str) -> str:
    """The ``svg`` element for a page: with its colours, words for it, and names that no other chart has."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")) or not child.tag.startswith(_SVG):
                parent.remove(child)
    whole = ElementTree.tostring(root, encoding="unicode")
    used = set(re.findall(r"url\(#([^)]+)\)", whole)) | set(re.findall(r'href="#([^"]+)"', whole))
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        for key, value in list(element.attrib.items()):
            if key == "id":
                del element.attrib[key]
                if value in used:
                    element.set("id", f"{name}-{value}")
            elif key == _XLINK:
                del element.attrib[key]
                element.set("href", f"#{name}-{value[1:]}")
            elif key in ("style", "clip-path"):
                element.set(key, _restyled(value, name))
    width = float(root.get("viewBox", "0 0 400 300").split()[2])
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-description")
    root.set("style", f"max-width:{1.6 * width:.0f}px; stroke-linejoin:round")
    for place, (tag, words) in enumerate((("title", caption), ("desc", description))):
        element = ElementTree.Element(
            tag, {"id": f"{name}-{tag if tag == 'title' else 'description'}"}
        )
        element.text = words
        root.insert(place, element)
    return ElementTree.tostring(root, encoding="unicode")


def _restyled(value: str, name: str) -> str:
    value = value.replace("url(#", f"url(#{name}-")
    value = re.sub(r"font: ([\d.]+px) [^;]+", r"font-size: \1", value)
    value = re.sub(r"font-family: [^;]+;? ?", "", value)
    return re.sub(r"#0a0[bc][0-9a-f]{2}", lambda found: f"var(--{_VARIABLES[found[0]]})", value)


def legend_below(figure: Any, axes: Any) -> None:
    """A legend under all axes, in as many columns as its names have room for, at most three."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = min(len(labels), _columns(labels))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def few_ticks(axes: Any) -> None:
    """At most six marks across, which stay apart on a phone."""
    from matplotlib.ticker import MaxNLocator

    locator: Any = MaxNLocator
    axes.xaxis.set_major_locator(locator(5))


def logarithmic(axis: Any, steps: Sequence[float] = (1.0,)) -> None:
    """Make an axis logarithmic, with plain numbers.

    Args:
        axis: the axis.
        steps: what is marked, times every power of ten.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    locator: Any = LogLocator
    formatter: Any = NullFormatter
    (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")
    axis.set_major_locator(locator(subs=steps))
    axis.set_major_formatter("{x:,.6g}")
    axis.set_minor_formatter(formatter())


def legend_height(names: Sequence[str]) -> float:
    """Inches that such a legend takes."""
    return 0.22 * -(-len(names) // _columns(names)) + 0.1


def _columns(names: Sequence[str]) -> int:
    """How many columns of such names there is room for: a mark takes about half an inch, a letter a fourteenth."""
    longest = max(map(len, names), default=0)
    return min(3, max(1, int(WIDTH / (0.5 + longest / 14))))
