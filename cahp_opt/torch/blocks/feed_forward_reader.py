"""Reading one feed-forward part by a layout, checked against the shapes of its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress

from torch import nn

from cahp_opt.arrays import Ints
from cahp_opt.space import Block, Unit
from cahp_opt.torch.blocks.blocks import (
    CUT,
    Cut,
    FeedForwardBlock,
    Piece,
    in_groups,
    of_neurons,
)
from cahp_opt.torch.blocks.feed_forward_layouts import ELSEWHERE, FEEDS, Feed
from cahp_opt.torch.blocks.feed_forward_refusals import tie
from cahp_opt.torch.blocks.linear_layers import (
    NotLinearError,
    base_linear,
    check_linear,
    column_tensors,
    is_linear,
    member,
    row_tensors,
    row_weight,
)
from cahp_opt.torch.blocks.site_reader import Misfit

_GROUPS = range(8, 17)
"""Usual numbers of groups: few enough for all subsets of a block to be tried."""


def feeds_of(place: str, site: nn.Module) -> tuple[Feed, ...]:
    """The layouts that ``site`` matches by its children; the best one for every output layer.

    Args:
        place: path of the site in the model.
        site: the module.
    """
    if next(site.children(), None) is None:
        return ()
    *_, around, name = ("", "", *place.split("."))
    if any(word in part for part in (around, name) for word in ELSEWHERE):
        return ()
    best: dict[str, tuple[tuple[int, bool], Feed]] = {}
    for feed in FEEDS:
        if (name in feed.inside or not feed.inside) and _matches(site, feed):
            worth = (len(feed.ins), _agrees(site, feed))
            if feed.out not in best or worth > best[feed.out][0]:
                best[feed.out] = worth, feed
    return tuple(feed for _, feed in best.values())


def read_feed_forward(
    place: str, site: nn.Module, feed: Feed, group: int | None = None
) -> FeedForwardBlock:
    """The feed-forward part at ``site``, its neurons grouped as they stand.

    Args:
        place: path of the site in the model.
        site: a module that ``feed`` fits.
        feed: the layout.
        group: neurons in a group; None for the width of :func:`group_width`. A part that was cut keeps its
            groups.

    Raises:
        Misfit: if weights contradict each other, or are not understood.
        ValueError: if ``group`` does not divide the width.
    """
    for path in (*feed.ins, feed.out):
        try:
            check_linear(site.get_submodule(path))
        except NotLinearError as error:
            raise Misfit(f"{path} {error}") from error
    out = site.get_submodule(feed.out)
    module = base_linear(out)
    width = row_weight(out).shape[1]
    name = f"{place}.{feed.out}" if place else feed.out
    cut: Cut | None = getattr(module, CUT, None)
    if cut is None and (tied := tie(site, feed, width)):
        raise Misfit(tied)
    order = tuple(range(width))
    if cut is not None:
        units = max(len(cut.kept), 1)
        if width % units:
            raise Misfit(
                f"{feed.out} reads {width} neurons, which {units} groups cannot share equally"
            )
        if cut.whole and cut.order is not None:  # its neurons stand where they always did
            order = cut.order
        if len(order) != width:
            raise Misfit(f"{feed.out} reads {width} neurons, and had {len(order)} when it was cut")
    else:
        each = group_width(width) if group is None else group
        if width % each:
            raise ValueError(
                f"`neuron_group` is {each}, and the {width} neurons of {name!r} cannot be put into groups of "
                f"that many; give a divisor of {width}, such as {group_width(width)}."
            )
        units = width // each
    columns = in_groups(order, units)
    entry = Block(name, units, Unit.NEURON_GROUP, order)
    return FeedForwardBlock(
        name=name,
        place=place,
        site=site,
        module=module,
        out=out,
        layout=feed,
        units=units,
        unit=entry.unit,
        pieces=tuple(_pieces(site, feed, columns)),
        columns=columns,
        cut=Cut.nothing(entry) if cut is None else cut,
    )


def group_width(width: int) -> int:
    """The usual number of neurons in a group.

    8 to 16 groups, of a multiple of 64 neurons if there are such, which hardware likes, or else of a smaller
    power of 2; the most of such groups. Widths without such divisors have the fewest groups above 16.
    """
    for step in (64, 32, 16, 8, 4, 2, 1):
        found = [n for n in _GROUPS if width % (n * step) == 0]
        if found:
            return width // max(found)
    above = [n for n in range(1, width + 1) if width % n == 0 and n not in _GROUPS]
    return width // min(above, key=lambda n: abs(math.log(n / max(_GROUPS))))


def _pieces(site: nn.Module, feed: Feed, columns: Ints) -> Iterator[Piece]:
    """Every tensor that is cut: the rows of the layers that make the neurons, and the columns of the other."""
    width = len(columns)
    for path in feed.ins:
        layer = site.get_submodule(path)
        rows = row_weight(layer).shape[0]
        if rows != feed.stretches * width:
            raise Misfit(
                f"{path} has {rows} output rows, and {feed.out} reads {width} neurons"
                + (f" from {feed.stretches} stretches of rows" if feed.stretches > 1 else "")
            )
        for inner, axis in row_tensors(layer):
            yield of_neurons(f"{path}.{inner}", axis, columns, rows)
    for inner, axis in column_tensors(site.get_submodule(feed.out)):
        yield of_neurons(f"{feed.out}.{inner}", axis, columns, width)


def _matches(site: nn.Module, feed: Feed) -> bool:
    """Whether there are these linear layers, and all read as many features as the last one writes."""
    found = list[nn.Module]()
    for path in (*feed.ins, feed.out):
        layer = _linear_at(site, path)
        if layer is None:
            return False
        found.append(layer)
    if not all(map(_is_plain, found)):
        return True  # reading it will say what is in the way
    *reading, writing = (row_weight(layer).shape for layer in found)
    return {shape[1] for shape in reading} == {writing[0]}


def _is_plain(layer: nn.Module) -> bool:
    with suppress(NotLinearError):
        check_linear(layer)
        return True
    return False


def _agrees(site: nn.Module, feed: Feed) -> bool:
    """Whether the layers have as many rows and columns as the layout says."""
    if not all(_is_plain(site.get_submodule(path)) for path in (*feed.ins, feed.out)):
        return False
    width = row_weight(site.get_submodule(feed.out)).shape[1]
    rows = {row_weight(site.get_submodule(path)).shape[0] for path in feed.ins}
    return rows == {feed.stretches * width}


def _linear_at(site: nn.Module, path: str) -> nn.Module | None:
    """The linear layer at a path from ``site``, if there is one."""
    found: object = site
    for part in path.split("."):
        found = member(found, part)
        if found is None:
            return None
    return found if isinstance(found, nn.Module) and is_linear(found) else None
