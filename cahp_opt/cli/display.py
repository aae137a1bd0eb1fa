"""Progress of a command on stderr: bars on a terminal, otherwise one line per stage."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cahp_opt import progress
from cahp_opt.progress import Stages


class Display(Stages):
    """Shows stages and remembers how long each took."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self._console = console or Console(stderr=True, highlight=False)

    @contextmanager
    def shown(self, name: str) -> Generator[progress.Progress, None, None]:
        if not self._console.is_terminal:
            yield progress.silent
            return
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        ) as bars:
            task = bars.add_task(name, total=None)

            def show(stage: str, done: int, total: int) -> None:
                text = stage if stage.startswith(name) else f"{name}: {stage}"
                bars.update(task, description=text, completed=done, total=total or None)

            yield show
            bars.update(task, description=name)

    def done(self, name: str, seconds: float) -> None:
        if not self._console.is_terminal:
            self._console.print(f"{name}: {seconds:.1f} s", markup=False)
