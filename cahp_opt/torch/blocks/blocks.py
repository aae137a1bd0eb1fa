"""The prunable blocks of a model: attention and feed-forward parts, their units, and what is cut with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from torch import Tensor, nn

from cahp_opt.arrays import Ints
from cahp_opt.space import Block, HeadSpace, Unit
from cahp_opt.torch.blocks.feed_forward_layouts import Feed
from cahp_opt.torch.blocks.layouts import Layout
from cahp_opt.torch.blocks.linear_layers import bias_of, effective_weight

if TYPE_CHECKING:
    from typing_extensions import Self

CUT = "cahp_cut"
"""Attribute of the module of a block that was sliced: its :class:`Cut`."""


class Cut(NamedTuple):
    """The units of a block that slicing kept, numbered as in the original model.

    The remaining counts are ambiguous (one group of two heads could be two heads), and a second cut
    must count in the same units. Neurons of a feed-forward part that lost some stand group by group; one
    that keeps all is not touched, so that whoever loads its weights finds every neuron where it was.

    Args:
        unit: the kind of the units.
        units: the original number.
        kept: those that are left; if none is, the block is a ghost (see surgery.py).
        order: the original's neuron at every place, group after group, ``[width]``; None for attention, and
            where it is not known any more, of a part that lost some.
    """

    unit: Unit
    units: int
    kept: tuple[int, ...]
    order: tuple[int, ...] | None = None

    @property
    def whole(self) -> bool:
        """Whether all units are left."""
        return len(self.kept) == self.units

    @staticmethod
    def nothing(block: Block) -> Cut:
        """Of a block that keeps all."""
        return Cut(block.unit, block.units, tuple(range(block.units)), block.order)


LAYOUT = "cahp_layout"
"""Attribute of an attention site with the :class:`~cahp_opt.torch.blocks.layouts.Layout` that was learnt for its
class (see learning.py); it comes before the table."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A parameter that is cut with the units.

    Args:
        path: its path in the site.
        axis: the axis along which it is cut.
        unit_of: the unit of every entry of that axis, ``[size]``; -1 for an entry of all units.
        order: the entries in the order in which a cut stores those that stay, ``[size]``; None to leave them
            as they stand.
    """

    path: str
    axis: int
    unit_of: Ints
    order: Ints | None = None


@dataclass(frozen=True, eq=False)
class PrunableBlock:
    """A linear layer that reads the outputs of units side by side, and all that is cut with the units.

    Args:
        name: of the block in the model: the path of attention's site, such as
            ``encoder.layer.0.attention``, and of a feed-forward part's output layer, such as
            ``encoder.layer.0.output.dense``.
        place: path of the site in the model.
        site: the module at that path; it holds all that is cut.
        module: the module with the mark of a cut, :data:`CUT`: the one that runs the attention, or the output
            layer of a feed-forward part inside of adapters.
        out: the output projection: an ``nn.Linear``, a GPT-2 ``Conv1D`` (transposed weight), or a LoRA
            adapter around one.
        units: prunable units.
        unit: the kind of the units.
        pieces: the tensors of the site that are cut with the units, the output projection's included.
        columns: the unit of every input column of ``out``, ``[width]``.
        cut: the units that slicing kept; before, all.
    """

    name: str
    place: str
    site: nn.Module
    module: nn.Module
    out: nn.Module
    units: int
    unit: Unit
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
        return len(self.columns)

    @property
    def entry(self) -> Block:
        """The block in a space."""
        return Block(self.name, self.units, self.unit)

    def at(self, model: nn.Module) -> Self:
        """The same block in a model of the same modules, taken by path.

        Raises:
            AttributeError: if ``model`` has no such modules.
        """
        site = model.get_submodule(self.place)
        paths = {id(module): path for path, module in submodules(self.site)}
        module, out = (site.get_submodule(paths[id(m)]) for m in (self.module, self.out))
        return replace(self, site=site, module=module, out=out)


@dataclass(frozen=True, eq=False)
class AttentionBlock(PrunableBlock):
    """One attention of a model, with heads or groups of them as units.

    Args:
        layout: the entry of :data:`~cahp_opt.torch.blocks.layouts.LAYOUTS` that describes the site, or the one
            that was learnt for it.
        heads: query heads.
        kv_heads: key/value heads; equal to ``heads`` unless query heads share them.
        head_dim: width of one query head's output.
        key_dim: width of one head's query and key, if it is known; otherwise ``head_dim``.
    """

    layout: Layout
    heads: int
    kv_heads: int
    head_dim: int
    key_dim: int


@dataclass(frozen=True, eq=False)
class FeedForwardBlock(PrunableBlock):
    """One feed-forward part of a model, with groups of neurons as units, all of a block as wide.

    Args:
        layout: the entry of :data:`~cahp_opt.torch.blocks.feed_forward_layouts.FEEDS` that describes it.
    """

    layout: Feed

    @property
    def order(self) -> tuple[int, ...]:
        """The neuron at every place, group after group, ``[width]``, as the input columns of ``out`` are
        numbered; in a group as they stand."""
        return tuple(np.argsort(self.columns, kind="stable").tolist())

    @property
    def entry(self) -> Block:
        return Block(self.name, self.units, self.unit, self.order)

    @property
    def ins(self) -> tuple[nn.Module, ...]:
        """The layers whose rows are the neurons."""
        return tuple(self.site.get_submodule(path) for path in self.layout.ins)

    def grouped(self, units: int, order: Sequence[int] | None = None) -> FeedForwardBlock:
        """The same block with its neurons in other groups.

        Args:
            units: the number of groups.
            order: the neuron at every place, group after group, ``[width]``; None for as they stand.

        Raises:
            ValueError: if the groups would not be as wide, or the block was cut, which fixed its groups.
        """
        neurons = tuple(range(self.width)) if order is None else tuple(order)
        if units == self.units and neurons == self.order:
            return self
        if not self.cut.whole:
            raise ValueError(
                f"the feed-forward part {self.name!r} was cut already, and its groups of neurons stay as they "
                "are; group the neurons of the unpruned model."
            )
        if self.width % units or sorted(neurons) != list(range(self.width)):
            raise ValueError(
                f"the {self.width} neurons of {self.name!r} cannot be put into {units} groups in an order of "
                f"{len(neurons)} neurons; the model is another, or the number must divide the width."
            )
        columns = in_groups(neurons, units)
        pieces = tuple(of_neurons(p.path, p.axis, columns, len(p.unit_of)) for p in self.pieces)
        found = replace(self, units=units, columns=columns, pieces=pieces)
        return replace(found, cut=Cut.nothing(found.entry))


def in_groups(order: Sequence[int], units: int) -> Ints:
    """The group of every neuron, ``[width]``, of groups that are all as wide.

    Args:
        order: the neuron at every place, group after group, ``[width]``.
        units: the number of groups, a divisor of the width.
    """
    columns = np.empty(len(order), dtype=np.int64)
    columns[list(order)] = np.repeat(np.arange(units), len(order) // units)
    return columns


def of_neurons(path: str, axis: int, columns: Ints, size: int) -> Piece:
    """A parameter with one entry for every neuron, or with several stretches of such entries.

    Args:
        path: its path in the site.
        axis: the axis of the entries.
        columns: the unit of every neuron, ``[width]``.
        size: entries of the axis, a multiple of the width.
    """
    starts = np.arange(0, size, len(columns))[:, None]
    order = (starts + np.argsort(columns, kind="stable")).reshape(-1)
    return Piece(path, axis, np.tile(columns, size // len(columns)), order)


@dataclass(frozen=True, eq=False)
class Prunable:
    """The prunable blocks of a model, found once and passed on.

    Public functions take a model, find this in it, and hand it inwards; nothing behind them finds again.
    It describes the model as it was when it was found: once blocks are cut, ``reread`` (finder.py) tells
    what is left of them.

    Args:
        model: the model that the blocks are in.
        blocks: its blocks, in module order.
        skipped: what looks like attention or a feed-forward part and is not understood, and therefore stays
            as it is: the reason by module path.
    """

    model: nn.Module
    blocks: tuple[PrunableBlock, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    @cached_property
    def space(self) -> HeadSpace:
        """The ground set of prunable units."""
        return HeadSpace(tuple(block.entry for block in self.blocks))

    @property
    def attention(self) -> tuple[AttentionBlock, ...]:
        """The blocks of attention."""
        return tuple(block for block in self.blocks if isinstance(block, AttentionBlock))

    @property
    def feed_forward(self) -> tuple[FeedForwardBlock, ...]:
        """The feed-forward parts."""
        return tuple(block for block in self.blocks if isinstance(block, FeedForwardBlock))

    def grouped(self, space: HeadSpace) -> Prunable:
        """The same blocks with the neurons in the groups of a space, which has the same blocks in the same
        order; only its names may differ. Where it does not state which neurons form a group, a block with as
        many groups stays as it is.

        Raises:
            ValueError: if it has other blocks, or groups that the neurons cannot be put into.
        """
        if [b.unit.of_attention for b in self.blocks] != [
            b.unit.of_attention for b in space.blocks
        ]:
            raise ValueError(
                f"`space` has {kinds_in_words(space)}, and the model {kinds_in_words(self.space)}; it is of "
                "another model."
            )

        def alike(block: PrunableBlock, entry: Block) -> PrunableBlock:
            unstated = entry.order is None and entry.units == block.units
            if unstated or not isinstance(block, FeedForwardBlock):
                return block
            return block.grouped(entry.units, entry.order)

        return replace(self, blocks=tuple(map(alike, self.blocks, space.blocks)))

    def at(self, model: nn.Module) -> Prunable:
        """The same blocks in a model of the same modules, such as a copy: taken by path, and not read.

        Raises:
            AttributeError: if ``model`` has no such modules.
        """
        return replace(self, model=model, blocks=tuple(block.at(model) for block in self.blocks))

    def __iter__(self) -> Iterator[PrunableBlock]:
        return iter(self.blocks)

    def __len__(self) -> int:
        return len(self.blocks)


def kinds_in_words(space: HeadSpace) -> str:
    """How many blocks of either kind a space has."""
    heads = int(space.of_attention.sum())
    return f"{heads} blocks of attention and {len(space.blocks) - heads} feed-forward parts"


def out_weight(block: PrunableBlock) -> Tensor:
    """The weight of the output projection, shape ``[hidden, width]``, adapters included.

    Without adapters it is a view of the parameter (also of a Conv1D's).
    """
    return effective_weight(block.out)


def out_bias(block: PrunableBlock) -> Tensor | None:
    """The bias of the output projection, shape ``[hidden]``, if it has one."""
    return bias_of(block.out)


def submodules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module in ``module``, itself first, each once, with its path."""
    return cast("Iterator[tuple[str, nn.Module]]", module.named_modules())


def within(path: str, around: str) -> bool:
    """Whether the module at ``path`` is the one at ``around`` or inside of it; the model's own path is
    empty."""
    return not around or path == around or path.startswith(f"{around}.")
