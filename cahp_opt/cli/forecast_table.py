"""What a run would do, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from cahp_opt.cli.notes import note
from cahp_opt.runs.forecast import Forecast, StageForecast

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def show_forecast(forecast: Forecast, console: Console | None = None) -> None:
    """Show a forecast on stdout, and its notes on stderr.

    Args:
        forecast: the forecast.
        console: where to; None for stdout.
    """
    to = console or Console(highlight=False, soft_wrap=True)
    to.print(f"read: {forecast.counts.in_words()}", markup=False)
    to.print(
        "passes over the texts, forward and backward through the unpruned model and forward through the pruned one:"
    )
    to.print(_table(forecast))
    for stage in forecast.stages:
        if stage.held:
            to.print(f"{stage.name} holds {_listed(stage.held)}", markup=False)
    to.print(f"the weights of the unpruned model take {in_bytes(forecast.weights)}")
    to.print(f"all passes take about {in_seconds(forecast.seconds)}; nothing was written")
    note(forecast.notes)


def in_bytes(number: float) -> str:
    """A number of bytes in three digits and the unit that suits it."""
    power = 0
    while number >= 1000 and power + 1 < len(_UNITS):
        number, power = number / 1024, power + 1
    return f"{number:.3g} {_UNITS[power]}"


def in_seconds(seconds: float) -> str:
    """A time in two units at most: what is foretold is not exact."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _table(forecast: Forecast) -> Table:
    table = Table(header_style="bold")
    table.add_column("stage", no_wrap=True)
    for name in ("texts", "forward", "backward", "pruned", "memory", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in forecast.stages:
        table.add_row(*_row(forecast, stage))
    return table


def _row(forecast: Forecast, stage: StageForecast) -> tuple[str, ...]:
    passes = stage.passes
    backward = passes.backward + passes.sliced_backward  # the latter of training alone
    return (
        stage.name,
        f"{stage.texts:,}",
        _passes(passes.dense),
        _passes(backward),
        _passes(passes.sliced),
        in_bytes(forecast.peak(stage)),
        in_seconds(stage.seconds),
    )


def _passes(number: float) -> str:
    return f"{number:.2f}" if number else ""


def _listed(held: Mapping[str, int]) -> str:
    return ", ".join(f"{what} {in_bytes(size)}" for what, size in held.items())
