"""What is known about a model's attention: blocks, their units, their projections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from cahp_opt.heads import Block, HeadSpace, Unit
from cahp_opt.torch.layouts import Layout, Part, Projection

GHOST = "cahp_ghost"
"""Attribute of an attention module that marks a block without kept units (see slicing.py)."""


@dataclass(frozen=True, eq=False)
class AttentionBlock:
    """One attention block of a model.

    Args:
        name: path of the attention site in the model, such as ``encoder.layer.0.attention``.
        site: the module at that path; all paths of ``layout`` start there.
        module: the module that runs the attention and holds the head counts.
        out: the output projection, an ``nn.Linear`` or a GPT-2 ``Conv1D`` (transposed weight).
        layout: the entry of :data:`~cahp_opt.torch.layouts.LAYOUTS` that describes the site.
        units: prunable units.
        unit: what a unit is.
        heads: query heads.
        kv_heads: key/value heads; equal to ``heads`` unless query heads share them.
        head_dim: width of one query head's output.
        key_dim: width of one head's query and key.
        ghost: whether slicing left this block without kept units: its output projection is zero and
            frozen, and the one unit that is left only keeps the shapes alive.
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
    ghost: bool

    @property
    def width(self) -> int:
        """Columns of the input of ``out``; unit ``u`` owns ``[u*width/units, (u+1)*width/units)``."""
        return self.heads * self.head_dim

    def rows(self, part: Part) -> int:
        """Rows per unit that ``part`` has in a projection."""
        if part is Part.QUERY:
            return self.heads // self.units * self.key_dim
        each = self.kv_heads // self.units
        return each * (self.key_dim if part is Part.KEY else self.head_dim)


@dataclass(frozen=True, eq=False)
class Attention:
    """The attention blocks of a model, in module order."""

    blocks: tuple[AttentionBlock, ...]

    @cached_property
    def space(self) -> HeadSpace:
        """The ground set of prunable units; block names are module paths."""
        return HeadSpace(tuple(Block(b.name, b.units, b.unit) for b in self.blocks))

    def __iter__(self) -> Iterator[AttentionBlock]:
        return iter(self.blocks)

    def __len__(self) -> int:
        return len(self.blocks)


def out_weight(block: AttentionBlock) -> Tensor:
    """The weight of the output projection, shape ``[hidden, width]`` (a view, also of a Conv1D)."""
    return row_weight(block.out)


def out_bias(block: AttentionBlock) -> Tensor | None:
    """The bias of the output projection, shape ``[hidden]``, if it has one."""
    bias = block.out.bias
    return bias if isinstance(bias, Tensor) else None


def is_conv1d(module: nn.Module) -> bool:
    """Whether ``module`` is GPT-2's linear layer with a transposed weight."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def row_weight(module: nn.Module) -> Tensor:
    """The weight of a linear module with one row per output feature (a view)."""
    weight = module.weight
    if not isinstance(weight, Tensor):
        raise TypeError(f"{type(module).__name__} has no weight tensor; it is no linear module.")
    return weight.T if is_conv1d(module) else weight


def projection_modules(block: AttentionBlock) -> Iterator[tuple[Projection, nn.Module]]:
    """The query, key and value projections of a block, each with its description."""
    for p in block.layout.projections:
        yield p, block.site.get_submodule(p.path)
