"""The forward of an attention module with the width of its own heads, by rewriting that of its class."""

from __future__ import annotations

import functools
import inspect
from types import FunctionType
from typing import Any

from torch import nn

# Relative, because these files travel together.
from .width_rewriting import Words, rewritten


class OwnWidth:
    """The forward of a module's class with the module's own width; set as its attribute ``forward``.

    A class rather than a closure, so that models with it can be copied and pickled.

    Args:
        module: an attention module of a class for which :func:`forward_of` gives a forward. Its
            attribute :data:`~cahp_opt.torch.slicing.width_rewriting.WIDTH` is the width.
        words: those words.
    """

    def __init__(self, module: nn.Module, words: Words) -> None:
        self._set(module, words)

    def _set(self, module: nn.Module, words: Words) -> None:
        function = forward_of(type(module), words)
        if function is None:
            raise TypeError(
                f"the forward of {type(module).__name__} cannot be rewritten here, because its source is another "
                "one than where the model was sliced, or is not at hand; load the model as it was saved."
            )
        self.module, self.words, self.function = module, words, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the class' own forward returns, for the same arguments."""
        return self.function(self.module, *args, **kwargs)

    def __getstate__(self) -> tuple[nn.Module, Words]:
        return self.module, self.words

    def __setstate__(self, state: tuple[nn.Module, Words]) -> None:
        self._set(*state)


def forward_of(cls: type, words: Words) -> FunctionType | None:
    """The forward of a class with a width of its own; None if it needs none, or cannot be rewritten."""
    return _rewritten(inspect.getattr_static(cls, "forward", None), words)


_rewritten = functools.cache(rewritten)  # a model has many modules of a class
