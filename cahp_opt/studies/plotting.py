"""Two pictures of a comparison: the gap against time, and the value against the budget."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from cahp_opt.files.records import PathLike, whole_file
from cahp_opt.studies.comparison import Comparison


def plot_gaps(comparison: Comparison, path: PathLike) -> None:
    """Every run as a point: seconds across, gap to the tightest bound of its problem up.

    Args:
        comparison: the runs.
        path: the picture; its ending says the format, such as ``.png`` or ``.svg``.

    Raises:
        ValueError: if matplotlib is not installed.
    """
    figure, axes = _figure()
    for name in _solvers(comparison):
        rows = [r for r in comparison.rows if r.solver == name and math.isfinite(comparison.gap(r))]
        if rows:
            # A proven optimum has no place on a logarithmic axis; it is drawn at the bottom.
            gaps = [max(100 * comparison.gap(r), 1e-4) for r in rows]
            axes.plot([r.seconds for r in rows], gaps, "o", label=name, alpha=0.8)
    axes.set(xscale="log", yscale="log", xlabel="seconds", ylabel="gap to the tightest bound, %")
    _save(figure, axes, path)


def plot_values(comparison: Comparison, path: PathLike) -> None:
    """For every solver the best value at every limit, under the tightest bound.

    Args:
        comparison: runs on problems that differ in the limit of their first table.
        path: the picture; its ending says the format.

    Raises:
        ValueError: if matplotlib is not installed.
    """
    figure, axes = _figure()
    limits = sorted({r.limit for r in comparison.rows if math.isfinite(r.limit)})
    for name in _solvers(comparison):
        best: dict[float, float] = {}
        for row in comparison.rows:
            if row.solver == name and math.isfinite(row.value) and math.isfinite(row.limit):
                best[row.limit] = max(row.value, best.get(row.limit, -math.inf))
        if best:
            axes.plot(sorted(best), [best[x] for x in sorted(best)], "o-", label=name, alpha=0.8)
    bounds = {limit: min(r.bound for r in comparison.rows if r.limit == limit) for limit in limits}
    known = [x for x in limits if math.isfinite(bounds[x])]
    axes.plot(known, [bounds[x] for x in known], "k--", label="tightest bound")
    axes.set(xlabel="limit of the budget", ylabel="value")
    _save(figure, axes, path)


def plots_missing() -> str | None:
    """Why nothing can be plotted, as a sentence; None if it can."""
    try:
        import matplotlib.figure  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        return "plots need matplotlib; install it with `pip install 'cahp-opt[plots]'`."
    return None


def _solvers(comparison: Comparison) -> list[str]:
    return list(dict.fromkeys(row.solver for row in comparison.rows))


def _figure() -> tuple[Any, Any]:
    missing = plots_missing()
    if missing is not None:
        raise ValueError(missing)
    from matplotlib.figure import Figure  # no pyplot: no global state, no window

    figure: Any = Figure(figsize=(7.5, 4.5), layout="constrained")
    return figure, figure.subplots()


def _save(figure: Any, axes: Any, path: PathLike) -> None:
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    ending = Path(path).suffix.lstrip(".") or "png"
    with whole_file(path) as temporary:
        figure.savefig(temporary, format=ending, dpi=150)
