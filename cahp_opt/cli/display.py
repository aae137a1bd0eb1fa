"""Where a command stands: bars on a terminal, one line per stage anywhere else; always on stderr."""

from __future__ import annotations

import time
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


class Display:
    """Shows stages and remembers how long each took."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self.seconds: dict[str, float] = {}
        """Seconds by stage; a stage that ran twice counts both."""

    @contextmanager
    def stage(self, name: str) -> Generator[progress.Progress, None, None]:
        """Show a stage while the body runs.

        Yields:
            The callback for the library's long work.
        """
        start = time.monotonic()
        if self._console.is_terminal:
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
        else:
            yield progress.silent
        taken = time.monotonic() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + taken
        if not self._console.is_terminal:
            self._console.print(f"{name}: {taken:.1f} s", markup=False)
