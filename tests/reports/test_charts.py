"""What all charts have in common."""

from __future__ import annotations

from typing import Any

import pytest

from cahp_opt.reports.charts import chart, charts_missing, legend_below, legend_height

pytestmark = pytest.mark.skipif(charts_missing(), reason="matplotlib is not installed")


@pytest.mark.parametrize("length", [4, 18, 27, 44])
def test_legends_stay_inside(length: int) -> None:
    """Whatever the length of the names."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    names = [f"{chr(97 + i)}{'m' if i % 2 else 'n'}".ljust(length, "e") for i in range(8)]
    drawn = list[Any]()

    def draw(figure: Any, axes: Any) -> None:
        for place, name in enumerate(names):
            axes.errorbar([place], [0.5], yerr=[0.1], label=name)
        legend_below(figure, axes)
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        drawn.append((figure.bbox, figure.legends[0].get_window_extent(), axes.bbox))

    chart("legend", "Names", "Names.", draw, height=3.0 + legend_height(names))
    ((whole, legend, axes),) = drawn
    assert whole.x0 <= legend.x0 and legend.x1 <= whole.x1
    assert axes.height > 1.5 * 72  # and leave room for what they are about
