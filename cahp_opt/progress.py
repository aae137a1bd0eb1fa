"""How long-running work reports its progress; the library never prints."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Progress = Callable[[str, int, int], None]
"""Called with the stage's name, the steps done, and the steps in all (0 where that is unknown)."""


def silent(stage: str, done: int, total: int) -> None:
    """The default: report nothing."""


class Stages:
    """Records how long each stage of a run took; shows nothing, but a subclass may."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """Seconds by stage; a stage that ran twice counts both."""

    @contextmanager
    def stage(self, name: str) -> Generator[Progress, None, None]:
        """Run the body as a stage.

        Yields:
            The progress callback to pass to the library.
        """
        start = time.monotonic()
        with self.shown(name) as progress:
            yield progress
        taken = time.monotonic() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + taken
        self.done(name, taken)

    def shown(self, name: str) -> AbstractContextManager[Progress]:
        """A context that shows a stage while it runs."""
        del name
        return nullcontext(silent)

    def done(self, name: str, seconds: float) -> None:
        """Called after each stage with the seconds that it took."""
