"""A forward for attention classes that give the heads' output the width of their input.

CLIP and its relatives in older releases of transformers end in ``attn_output.reshape(batch, length,
embed_dim)`` with ``embed_dim`` from ``hidden_states.shape``, and so do many vision models and
encoder-decoders in newer ones. That holds only while all heads are there.
"""

from __future__ import annotations

import functools
import inspect
from types import FunctionType
from typing import Any

from torch import nn

from cahp_opt.torch.blocks.blocks import AttentionBlock, submodules
from cahp_opt.torch.blocks.layouts import HEADS, MAYBE_WIDTHS, WIDTHS
from cahp_opt.torch.slicing.width_rewriting import Words, rewritten


class OwnWidth:
    """The forward of a module's class with the module's own width; set as its attribute ``forward``.

    A class rather than a closure, so that models with it can be copied and pickled.

    Args:
        module: an attention module of a class for which :func:`words_for_own_width` gives words. Its
            attribute :data:`~cahp_opt.torch.slicing.width_rewriting.WIDTH` is the width.
        words: those words.
    """

    def __init__(self, module: nn.Module, words: Words) -> None:
        self._set(module, words)

    def _set(self, module: nn.Module, words: Words) -> None:
        function = _forward_of(type(module), words)
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


def words_for_own_width(block: AttentionBlock) -> Words | None:
    """The words by which the forward of a block's module must be, and can be, rewritten; None if not."""
    owner, layout = block.module, block.layout
    path = next((path for path, m in submodules(owner) if m is block.out), "")
    words = Words(
        projections=tuple(p.path.split(".")[0] for p in layout.projections),
        out=path.split(".")[0],
        heads=(*layout.heads, *HEADS),
        widths=(*layout.widths, *WIDTHS, *MAYBE_WIDTHS),
    )
    return None if _forward_of(type(owner), words) is None else words


def _forward_of(cls: type, words: Words) -> FunctionType | None:
    return _rewritten(inspect.getattr_static(cls, "forward", None), words)


_rewritten = functools.cache(rewritten)  # a model has many modules of a class
