"""Printing where the terminal cannot show every character: escapes rather than an error at the end."""

from __future__ import annotations

import io
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager


@contextmanager
def never_failing_streams() -> Generator[None]:
    """Standard output and error write what their encoding lacks as escapes, while the context lasts.

    Tables choose lines of their own that every encoding has.
    """
    with ExitStack() as stack:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # not what a program has put there
                stack.callback(stream.reconfigure, errors=stream.errors)
                stream.reconfigure(errors="backslashreplace")
        yield
