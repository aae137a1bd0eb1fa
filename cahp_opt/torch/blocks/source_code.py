"""The attributes that the code of a class reads or replaces."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FunctionType

from torch import nn


def reads(cls: type, name: str, of: str = "self") -> bool:
    """Whether a method of ``cls`` other than ``__init__`` reads the attribute ``name``.

    A width that only ``__init__`` reads may mean the width of the model to others, such as a weight
    initialiser; one that forward reads to reshape must follow the heads.

    Args:
        cls: the class.
        name: the attribute.
        of: "self", or an attribute of it through which ``name`` is read as well.
    """
    return any(
        name in code.co_names and (of == "self" or of in code.co_names)
        for _, value in _methods(cls)
        for code in _codes(value)
    )


def replaces(cls: type, name: str) -> str | None:
    """The method of ``cls`` other than ``__init__`` that sets the attribute ``name``, if there is one."""
    for method, value in _methods(cls):
        for code in _codes(value):
            if name in code.co_names and name in _set_by(code):
                return method
    return None


@lru_cache(maxsize=1024)  # layers of one class share their code
def _set_by(code: CodeType) -> frozenset[str]:
    """The names of the attributes that ``code`` sets."""
    steps = dis.get_instructions(code)
    return frozenset(step.argval for step in steps if step.opname == "STORE_ATTR")


def _methods(cls: type) -> Iterator[tuple[str, object]]:
    for base in cls.__mro__:
        if base not in (nn.Module, object):
            yield from ((name, x) for name, x in vars(base).items() if name != "__init__")


def _codes(value: object) -> Iterator[CodeType]:
    if isinstance(value, property):
        value = value.fget
    function = inspect.unwrap(value) if callable(value) else None
    stack = [function.__code__] if isinstance(function, FunctionType) else []
    while stack:
        code = stack.pop()
        yield code
        stack += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
