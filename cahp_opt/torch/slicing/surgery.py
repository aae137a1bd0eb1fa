"""Cutting units out of blocks in place, with a way back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate

import numpy as np
import torch
from torch import nn

from cahp_opt.arrays import Bools, Ints
from cahp_opt.space import Unit
from cahp_opt.torch.blocks.blocks import (
    CUT,
    AttentionBlock,
    FeedForwardBlock,
    Piece,
    Prunable,
    PrunableBlock,
    submodules,
)
from cahp_opt.torch.blocks.feed_forward_layouts import INNER_WIDTHS
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
from cahp_opt.torch.blocks.source_code import reads
from cahp_opt.torch.running.undo import Journal
from cahp_opt.torch.slicing.argument_hooks import KeepHeads, argument_position
from cahp_opt.torch.slicing.config_view import config_view
from cahp_opt.torch.slicing.own_width import words_for_own_width
from cahp_opt.torch.slicing.rewritten_forward import OwnWidth
from cahp_opt.torch.slicing.shared_bias import untied
from cahp_opt.torch.slicing.width_rewriting import WIDTH


def cut(prunable: Prunable, kept: Bools, journal: Journal) -> None:
    """Remove the units that are not ``kept`` from the modules of ``prunable``, in place.

    A block without kept units keeps its first unit as a *ghost*, because with an empty tensor in
    the first block the key/value cache would count as empty, and generation would silently go
    wrong. The ghost's columns of the output projection are zero, and its weights are frozen, so the
    block adds its bias alone and training cannot revive it.

    Args:
        prunable: the blocks; their records are out of date afterwards.
        kept: the keep-set, bool ``[n]``.
        journal: records everything that is replaced.
    """
    blocks = untied(prunable, kept, journal)
    for block, where in zip(blocks, prunable.space.slices, strict=True):
        if block.ghost:  # its one unit is not of the original model, and nothing can revive it
            _freeze(block)
            continue
        ids = np.array(block.cut.kept)[kept[where]]
        journal.put(block.module, CUT, block.cut._replace(kept=tuple(ids.tolist())))
        if not kept[where].all():
            _cut_block(prunable.model, block, kept[where], journal)


def freeze_ghosts(prunable: Prunable) -> None:
    """Freeze the weights of blocks without kept units again, after a loader replaced them."""
    for block in prunable:
        if block.ghost:
            _freeze(block)


def _cut_block(model: nn.Module, block: PrunableBlock, kept: Bools, journal: Journal) -> None:
    staying = kept.copy()
    if not kept.any():
        staying[0] = True
    for piece in block.pieces:
        _cut_piece(block.site, piece, staying, journal)
    for module in block.site.modules():
        for name, size in resize(module).items():
            journal.put(module, name, size)
    if isinstance(block, AttentionBlock):
        _follow_heads(model, block, staying, journal)
    elif isinstance(block, FeedForwardBlock):
        _follow_neurons(block, int(staying[block.columns].sum()), journal)
    if not kept.any():
        for piece in _out_pieces(block):
            _put_parameter(block.site, piece.path, torch.zeros_like, journal)
        _freeze(block)


def _follow_heads(
    model: nn.Module, block: AttentionBlock, staying: Bools, journal: Journal
) -> None:
    """Let the attributes, arguments and forward of attention follow the heads that stay."""
    owner = block.module
    of_head = block.columns[:: block.head_dim]
    heads = np.flatnonzero(staying[of_head])
    by_group = block.units == block.kv_heads and block.unit is not Unit.QUERY_SLOT
    _cut_counts(block, len(heads), int(staying.sum()) if by_group else block.kv_heads, journal)
    for argument in (*block.layout.arguments, *ARGUMENTS):
        position = argument_position(owner, argument.name)
        if position is not None and _may_have_heads(model, block, argument):
            hook = KeepHeads(argument.name, position, heads.tolist(), block.heads)
            journal.call_later(owner.register_forward_pre_hook(hook, with_kwargs=True).remove)
    words = words_for_own_width(block)
    if words is not None:
        journal.put(owner, WIDTH, int(staying[block.columns].sum()))
        # A forward of a module's own is one of these already, or belongs to something else.
        if "forward" not in vars(owner):
            vars(owner)["forward"] = OwnWidth(owner, words)
            journal.call_later(lambda: vars(owner).pop("forward"))


def _follow_neurons(block: FeedForwardBlock, width: int, journal: Journal) -> None:
    """Let the attributes of the modules right around the layers follow the number of neurons."""
    layers = (*block.layout.ins, block.layout.out)
    for around in dict.fromkeys(path.rpartition(".")[0] for path in layers):
        module = block.site.get_submodule(around)
        for name in INNER_WIDTHS:
            if getattr(module, name, None) == block.width:
                journal.put(module, name, width)


def _cut_piece(site: nn.Module, piece: Piece, staying: Bools, journal: Journal) -> None:
    index = _indices(piece, staying)

    def taken(parameter: torch.Tensor) -> torch.Tensor:
        # The device is named, because a loader may have made the meta device the default.
        at = torch.tensor(index.tolist(), device=parameter.device)
        return parameter.index_select(piece.axis, at)

    _put_parameter(site, piece.path, taken, journal)


def _indices(piece: Piece, staying: Bools) -> Ints:
    """The entries that belong to a staying unit, or to all units, in the order in which they are stored."""
    unit_of = piece.unit_of
    found: Bools = (unit_of < 0) | staying[unit_of]
    return np.flatnonzero(found) if piece.order is None else piece.order[found[piece.order]]


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
    """Set every attribute that holds a count or a width to the remaining number."""
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
    # A forward that names the width itself leaves them, which may be the width of the model to others.
    named = words_for_own_width(block) is not None
    maybe = () if named else (a for a in MAYBE_WIDTHS if reads(type(owner), a))
    for attribute in (*layout.widths, *WIDTHS, *maybe):
        old: object = getattr(owner, attribute, None)
        if isinstance(old, int) and old in widths:
            journal.put(owner, attribute, widths[old])
    if layout.shards:
        journal.put(owner, layout.shards, 1)
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
    """The modules with a tensor that is cut, at any depth; others have their own heads."""
    paths = {p for piece in block.pieces for p in accumulate(piece.path.split("."), "{}.{}".format)}
    yield from (m for path, m in submodules(block.site) if not path or path in paths)


def _freeze(block: PrunableBlock) -> None:
    for weight in block.weights:
        weight.requires_grad_(False)


def _out_pieces(block: PrunableBlock) -> Iterator[Piece]:
    own = {id(parameter) for parameter in block.out.parameters()}
    both = zip(block.pieces, block.weights, strict=True)
    return (piece for piece, weight in both if id(weight) in own)


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
