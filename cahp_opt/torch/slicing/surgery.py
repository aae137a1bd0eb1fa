"""Cutting units out of attention modules in place, with a way back."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from itertools import accumulate

import numpy as np
import torch
from torch import nn

from cahp_opt.space import Bools, Ints, Unit
from cahp_opt.torch.blocks.blocks import CUT, Attention, AttentionBlock, Cut, Piece, submodules
from cahp_opt.torch.blocks.layouts import (
    ARGUMENTS,
    GROUPS,
    HEADS,
    KV_HEADS,
    MAYBE_WIDTHS,
    SHARED_BIAS,
    WIDTHS,
    HeadArgument,
)
from cahp_opt.torch.blocks.linear_layers import resize
from cahp_opt.torch.blocks.site_reader import read_block
from cahp_opt.torch.blocks.source_code import reads
from cahp_opt.torch.slicing.argument_hooks import DropArgument, KeepHeads
from cahp_opt.torch.slicing.config_view import config_view
from cahp_opt.torch.slicing.plain_forward import PlainForward, takes_width_from_input

_ABSENT = object()


class Journal:
    """What surgery replaced, so that it can be put back."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def put(self, module: nn.Module, name: str, value: object) -> None:
        """Set an attribute or parameter of ``module`` and remember what was there."""
        old: object = getattr(module, name, _ABSENT)
        if old is _ABSENT:
            self._undo.append(lambda: delattr(module, name))
        else:
            self._undo.append(lambda: setattr(module, name, old))
        setattr(module, name, value)

    def call_later(self, undo: Callable[[], None]) -> None:
        """Remember another step to take on the way back."""
        self._undo.append(undo)

    def restore(self) -> None:
        """Put everything back, latest first."""
        while self._undo:
            self._undo.pop()()


def cut(model: nn.Module, attention: Attention, kept: Bools, journal: Journal) -> None:
    """Remove the units that are not ``kept`` from the modules of ``attention``, in place.

    A block without kept units keeps its first unit as a *ghost*: an empty tensor in the first block
    would make the key/value cache believe that it is empty, and generation would go wrong without an
    error. The ghost's columns of the output projection are zero, and its weights are frozen, so the
    block adds its bias alone and training cannot revive it.

    Args:
        model: the model, for what surrounds its blocks.
        attention: the blocks of ``model``; their records are out of date afterwards.
        kept: the keep-set, bool ``[n]``.
        journal: takes down everything that is replaced.
    """
    blocks = untied(attention, kept, journal)
    for block, where in zip(blocks, attention.space.slices, strict=True):
        if block.ghost:  # its one unit is no unit of the original model, and nothing can revive it
            _freeze(block)
            continue
        ids = np.array(block.cut.kept)[kept[where]]
        journal.put(block.module, CUT, Cut(block.unit, block.cut.units, tuple(ids.tolist())))
        if not kept[where].all():
            _cut_block(model, block, kept[where], journal)


def freeze_ghosts(attention: Attention) -> None:
    """Freeze the weights of blocks without kept units again, after a loader replaced them."""
    for block in attention:
        if block.ghost:
            _freeze(block)


def _cut_block(model: nn.Module, block: AttentionBlock, kept: Bools, journal: Journal) -> None:
    staying = kept.copy()
    if not kept.any():
        staying[0] = True
    site, owner = block.site, block.module
    for piece in block.pieces:
        _cut_piece(site, piece, staying, journal)
    for module in site.modules():
        for name, size in resize(module).items():
            journal.put(module, name, size)

    of_head = block.columns[:: block.head_dim]
    heads = np.flatnonzero(staying[of_head])
    by_group = block.units == block.kv_heads and block.unit is not Unit.QUERY_SLOT
    _cut_counts(block, len(heads), int(staying.sum()) if by_group else block.kv_heads, journal)
    for argument in (*block.layout.arguments, *ARGUMENTS):
        position = _position(owner, argument.name)
        if position is not None and _may_have_heads(model, block, argument):
            hook = KeepHeads(argument.name, position, heads.tolist(), block.heads)
            journal.call_later(owner.register_forward_pre_hook(hook, with_kwargs=True).remove)
    # A forward of a module's own is one of these already, or belongs to something else.
    if takes_width_from_input(type(owner)) and "forward" not in vars(owner):
        vars(owner)["forward"] = PlainForward(owner)
        journal.call_later(lambda: vars(owner).pop("forward"))
    if not kept.any():
        for piece in _out_pieces(block):
            _put_parameter(site, piece.path, torch.zeros_like, journal)
        _freeze(block)


def _cut_piece(site: nn.Module, piece: Piece, staying: Bools, journal: Journal) -> None:
    index = _indices(piece.unit_of, staying)

    def taken(parameter: torch.Tensor) -> torch.Tensor:
        # The device is named, because a loader may have made the meta device the default.
        at = torch.tensor(index.tolist(), device=parameter.device)
        return parameter.index_select(piece.axis, at)

    _put_parameter(site, piece.path, taken, journal)


def _indices(unit_of: Ints, staying: Bools) -> Ints:
    """The entries that belong to a staying unit, or to all units."""
    return np.flatnonzero((unit_of < 0) | staying[unit_of])


def _put_parameter(
    site: nn.Module,
    path: str,
    change: Callable[[torch.Tensor], torch.Tensor],
    journal: Journal,
) -> None:
    parent, _, name = path.rpartition(".")
    module = site.get_submodule(parent)
    old = module.get_parameter(name)
    journal.put(module, name, nn.Parameter(change(old.detach()), old.requires_grad))


def _cut_counts(block: AttentionBlock, heads: int, kv_heads: int, journal: Journal) -> None:
    """Make every attribute that holds a count or a width say what is left."""
    owner, layout = block.module, block.layout
    head_words, kv_words = (*layout.heads, *HEADS), (*layout.kv_heads, *KV_HEADS)
    numbers = {a: heads for a in head_words}
    numbers |= {a: kv_heads for a in kv_words}
    numbers |= {a: heads // kv_heads for a in GROUPS}
    for attribute, number in numbers.items():
        if getattr(owner, attribute, None) is not None:
            journal.put(owner, attribute, number)
    sizes = (block.head_dim, block.key_dim)
    widths = {block.kv_heads * size: kv_heads * size for size in sizes}
    widths |= {block.heads * size: heads * size for size in sizes}
    for attribute in (*layout.widths, *WIDTHS, *(a for a in MAYBE_WIDTHS if reads(type(owner), a))):
        old: object = getattr(owner, attribute, None)
        if isinstance(old, int) and old in widths:
            journal.put(owner, attribute, widths[old])
    for module in _holders(block):  # such as one that holds a table of biases
        for attribute in head_words:
            if module is not owner and getattr(module, attribute, None) == block.heads:
                journal.put(module, attribute, heads)
    config: object = getattr(owner, "config", None)
    counts = {**dict.fromkeys(head_words, heads), **dict.fromkeys(kv_words, kv_heads)}
    read = {name: n for name, n in counts.items() if reads(type(owner), name, of="config")}
    if config is not None and read:
        journal.put(owner, "config", config_view(config, read))


def _holders(block: AttentionBlock) -> Iterator[nn.Module]:
    """The modules with a tensor that is cut, at any depth; others have heads of their own."""
    paths = {p for piece in block.pieces for p in accumulate(piece.path.split("."), "{}.{}".format)}
    yield from (m for path, m in submodules(block.site) if not path or path in paths)


def _freeze(block: AttentionBlock) -> None:
    for weight in block.weights:
        weight.requires_grad_(False)


def _out_pieces(block: AttentionBlock) -> Iterator[Piece]:
    own = {id(parameter) for parameter in block.out.parameters()}
    both = zip(block.pieces, block.weights, strict=True)
    return (piece for piece, weight in both if id(weight) in own)


def untied(attention: Attention, kept: Bools, journal: Journal) -> tuple[AttentionBlock, ...]:
    """Give every block its own table of biases where the first block's serves all (T5).

    Blocks that share one stay as they are if all of them keep all units, so that a stack of its own and
    one in a larger model are cut alike.
    """
    shared = SHARED_BIAS
    tables = {b.name: b.module for b in attention if _has_table(b.module)}
    places = zip(attention, attention.space.slices, strict=True)
    losing = [block.name for block, where in places if not kept[where].all()]
    untied: list[AttentionBlock] = []
    for block in attention:
        owner = block.module
        position = _position(owner, shared.argument)
        if (
            hasattr(owner, shared.flag)
            and position is not None
            and any(_same_place(name, block.name) for name in losing)
        ):
            source = next((m for name, m in tables.items() if _same_place(name, block.name)), None)
            if source is not None and not _has_table(owner):
                for table in _tables(source):
                    journal.put(owner, table, copy.deepcopy(getattr(source, table)))
                journal.put(owner, shared.flag, True)
                block = read_block(block.name, block.site, block.layout, block.unit)
            if not _drops(owner):
                hook = DropArgument(shared.argument, position)
                journal.call_later(owner.register_forward_pre_hook(hook, with_kwargs=True).remove)
        untied.append(block)
    return tuple(untied)


def _drops(owner: nn.Module) -> bool:
    hooks: dict[int, object] = vars(owner)["_forward_pre_hooks"]
    return any(isinstance(hook, DropArgument) for hook in hooks.values())


def _tables(owner: nn.Module) -> list[str]:
    return [name for name in SHARED_BIAS.tables if hasattr(owner, name)]


def _has_table(owner: nn.Module) -> bool:
    return bool(getattr(owner, SHARED_BIAS.flag, False)) and bool(_tables(owner))


def _same_place(one: str, other: str) -> bool:
    """Whether two paths name the same module of two layers: they differ in one number alone."""
    a, b = one.split("."), other.split(".")
    differing = [(x, y) for x, y in zip(a, b, strict=False) if x != y]
    return (
        len(a) == len(b)
        and len(differing) <= 1
        and all(x.isdecimal() and y.isdecimal() for x, y in differing)
    )


def _position(owner: nn.Module, argument: str) -> int | None:
    names = list(inspect.signature(type(owner).forward).parameters)[1:]
    return names.index(argument) if argument in names else None


def _may_have_heads(model: nn.Module, block: AttentionBlock, argument: HeadArgument) -> bool:
    if argument.name == SHARED_BIAS.argument and hasattr(block.module, SHARED_BIAS.flag):
        return False  # untied: it never arrives
    if not argument.beside:
        return True
    parts = block.name.split(".")
    around = (model.get_submodule(".".join(parts[:end])) for end in range(len(parts)))
    return any(_is_set(module, name) for module in around for name in argument.beside)


def _is_set(module: nn.Module, name: str) -> bool:
    value: object = getattr(module, name, None)
    return value is not None and value is not False
