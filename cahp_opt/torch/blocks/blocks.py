"""A model's attention: its blocks, their units, and the tensors cut with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, cast

from torch import Tensor, nn

from cahp_opt.arrays import Ints
from cahp_opt.space import Block, HeadSpace, Unit
from cahp_opt.torch.blocks.layouts import Layout
from cahp_opt.torch.blocks.linear_layers import bias_of, effective_weight

CUT = "cahp_cut"
"""Attribute of an attention module that was sliced: its :class:`Cut`."""


class Cut(NamedTuple):
    """The units of an attention module that slicing kept, numbered as in the original model.

    The remaining counts are ambiguous (one group of two heads could be two heads), and a second cut
    must count in the same units.

    Args:
        unit: the kind of the units.
        units: the original number.
        kept: those that are left; if none is, the block is a ghost (see surgery.py).
    """

    unit: Unit
    units: int
    kept: tuple[int, ...]


LAYOUT = "cahp_layout"
"""Attribute of an attention site with the :class:`~cahp_opt.torch.blocks.layouts.Layout` that was learnt for its
class (see learning.py); it comes before the table."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A parameter that is cut with the units.

    Args:
        path: its path in the attention site.
        axis: the axis along which it is cut.
        unit_of: the unit of every entry of that axis, ``[size]``; -1 for an entry of all units.
    """

    path: str
    axis: int
    unit_of: Ints


@dataclass(frozen=True, eq=False)
class AttentionBlock:
    """One attention block of a model.

    Args:
        name: path of the attention site in the model, such as ``encoder.layer.0.attention``.
        site: the module at that path.
        module: the module that runs the attention and holds the head counts.
        out: the output projection: an ``nn.Linear``, a GPT-2 ``Conv1D`` (transposed weight), or a LoRA
            adapter around one.
        layout: the entry of :data:`~cahp_opt.torch.blocks.layouts.LAYOUTS` that describes the site, or the one
            that was learnt for it.
        units: prunable units.
        unit: the kind of the units.
        heads: query heads.
        kv_heads: key/value heads; equal to ``heads`` unless query heads share them.
        head_dim: width of one query head's output.
        key_dim: width of one head's query and key, if it is known; otherwise ``head_dim``.
        pieces: the tensors of the site that are cut with the units, the output projection's included.
        columns: the unit of every input column of ``out``, ``[width]``.
        cut: the units that slicing kept; before, all.
    """

    name: str
    site: nn.Module
    module: nn.Module
    out: nn.Module
    layout: Layout
    units: int
    unit: Unit
    heads: int
    kv_heads: int
    head_dim: int
    key_dim: int
    pieces: tuple[Piece, ...]
    columns: Ints
    cut: Cut

    @property
    def ghost(self) -> bool:
        """Whether slicing kept no unit: the output projection is zero and frozen, and one unit is
        stored only for its shapes."""
        return not self.cut.kept

    @property
    def weights(self) -> list[nn.Parameter]:
        """The tensors of :attr:`pieces`, in their order."""
        return [self.site.get_parameter(piece.path) for piece in self.pieces]

    @property
    def width(self) -> int:
        """Columns of the input of ``out``."""
        return self.heads * self.head_dim


@dataclass(frozen=True, eq=False)
class Prunable:
    """The prunable blocks of a model, found once and passed on.

    Public functions take a model, find this in it, and hand it inwards; nothing behind them finds again.
    It describes the model as it was when it was found: once blocks are cut, ``reread`` (finder.py) tells
    what is left of them.

    Args:
        model: the model that the blocks are in.
        blocks: its blocks, in module order.
        skipped: what looks like attention and is not understood, and therefore stays as it is: the
            reason by module path.
    """

    model: nn.Module
    blocks: tuple[AttentionBlock, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    @cached_property
    def space(self) -> HeadSpace:
        """The ground set of prunable units; block names are module paths."""
        return HeadSpace(tuple(Block(b.name, b.units, b.unit) for b in self.blocks))

    def at(self, model: nn.Module) -> Prunable:
        """The same blocks in a model of the same modules, such as a copy: taken by path, and not read.

        Raises:
            AttributeError: if ``model`` has no such modules.
        """

        def there(block: AttentionBlock) -> AttentionBlock:
            site = model if block.site is self.model else model.get_submodule(block.name)
            paths = {id(module): path for path, module in submodules(block.site)}
            module, out = (site.get_submodule(paths[id(m)]) for m in (block.module, block.out))
            return replace(block, site=site, module=module, out=out)

        return replace(self, model=model, blocks=tuple(map(there, self.blocks)))

    def __iter__(self) -> Iterator[AttentionBlock]:
        return iter(self.blocks)

    def __len__(self) -> int:
        return len(self.blocks)


def out_weight(block: AttentionBlock) -> Tensor:
    """The weight of the output projection, shape ``[hidden, width]``, adapters included.

    Without adapters it is a view of the parameter (also of a Conv1D's).
    """
    return effective_weight(block.out)


def out_bias(block: AttentionBlock) -> Tensor | None:
    """The bias of the output projection, shape ``[hidden]``, if it has one."""
    return bias_of(block.out)


def submodules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module in ``module``, itself first, each once, with its path."""
    return cast("Iterator[tuple[str, nn.Module]]", module.named_modules())
