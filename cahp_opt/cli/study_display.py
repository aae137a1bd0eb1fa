"""Progress of a study: lines now and then where there is no terminal to draw on."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

from cahp_opt import progress
from cahp_opt.cli.display import Display

_BETWEEN = 20.0  # seconds


class StudyDisplay(Display):
    """Shows the cells that are done, failed and left, and about how long these take."""

    @contextmanager
    def shown(self, name: str) -> Generator[progress.Progress, None, None]:
        """As :class:`~cahp_opt.cli.display.Display` does; without a terminal a line now and then."""
        if self._console.is_terminal or name != "cells":
            with super().shown(name) as show:
                yield show
            return
        last = time.monotonic()

        def tell(stage: str, done: int, total: int) -> None:
            nonlocal last
            if done in (0, total) or time.monotonic() - last > _BETWEEN:
                last = time.monotonic()
                self._console.print(stage, markup=False)

        yield tell
