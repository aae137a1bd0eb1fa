"""Commands that a launcher such as ``torchrun`` started in several processes."""

from __future__ import annotations

import io
import os
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

_TOGETHER = ("prune", "calibrate")


def is_first() -> bool:
    """Whether this process is the only one or the first of several: the others write nothing."""
    return os.environ.get("WORLD_SIZE", "1") in ("", "1") or os.environ.get("RANK", "0") == "0"


@contextmanager
def launched(command: str) -> Generator[None]:
    """Run a command in as many processes as a launcher started, connected; all but the first are silent.

    Args:
        command: its name.

    Raises:
        ValueError: for a command that runs in one process, if there are several.
    """
    number = os.environ.get("WORLD_SIZE", "1")
    if number in ("", "1"):
        yield
        return
    if command not in _TOGETHER:
        raise ValueError(
            f"a launcher started {number} processes, and `cahp {command}` runs in one; only "
            f"{' and '.join(f'`cahp {name}`' for name in _TOGETHER)} share their work."
        )
    from cahp_opt.torch.calibration.shares import connected

    with connected():
        if is_first():
            yield
            return
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
