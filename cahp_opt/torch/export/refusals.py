"""Why a model cannot be written in a format."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


class ExportError(ValueError):
    """The model cannot be written in the format, or what was written does not compute the same; the message
    states why. Nothing was written."""


def package(name: str, extra: str) -> ModuleType:
    """A package that a format needs.

    Args:
        name: of the module.
        extra: of this library, with which it is installed.

    Raises:
        ExportError: if it is not installed.
    """
    check_installed(name, extra)
    return importlib.import_module(name)


def check_installed(name: str, extra: str) -> None:
    """Refuse if a package that a format needs is missing; arguments as for :func:`package`, which also imports
    it.

    Raises:
        ExportError: if it is not installed.
    """
    if importlib.util.find_spec(name) is None:
        raise ExportError(
            f"this format needs the package {name!r}, which is not installed; install it with "
            f"`pip install 'cahp-opt[{extra}]'`."
        )
