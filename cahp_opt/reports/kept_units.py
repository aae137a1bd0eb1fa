"""What every layer keeps, as tables with a square per unit and a bar per share."""

from __future__ import annotations

from collections.abc import Iterator

from cahp_opt.reports.page import Entry, Part, Table
from cahp_opt.reports.wording import percent
from cahp_opt.selection import Selection, listed
from cahp_opt.space import HeadSpace, Portion

_SQUARES = 24
"""Blocks with more units than this have a bar in place of a square per unit."""


def layers_of(space: HeadSpace) -> list[list[int]]:
    """The blocks side by side, ``[layers]`` of numbers of blocks: attention, and the feed-forward part that
    follows it."""
    found: list[list[int]] = []
    for number, block in enumerate(space.blocks):
        if block.unit.of_attention or not found or len(found[-1]) == 2:
            found.append([number])
        else:
            found[-1].append(number)
    return found


def layer_names(space: HeadSpace) -> list[str]:
    """A short name for every row of :func:`layers_of`: its number, where every layer has both kinds."""
    layers = layers_of(space)
    both = all(len(layer) == 2 for layer in layers)
    return [f"{'layer' if both else 'block'} {number}" for number in range(len(layers))]


def kept_tables(selection: Selection) -> Iterator[Part]:
    """The picture of what is kept, and the same as numbers by the blocks' names."""
    space, portions = selection.space, selection.space.portions(selection.counts)
    attention, neurons = bool(space.of_attention.any()), not space.of_attention.all()
    header = ["", *(["attention"] if attention else []), *(["feed-forward"] if neurons else [])]
    rows = list[tuple[Entry | str, ...]]()
    for name, layer in zip(layer_names(space), layers_of(space), strict=True):
        cells: list[Entry | str] = [name]
        of_kind = {space.blocks[b].unit.of_attention: b for b in layer}
        for kind in [True] * attention + [False] * neurons:
            b = of_kind.get(kind)
            cells.append("" if b is None else _cell(selection, b, portions[b]))
        rows.append(tuple(cells))
    totals = space.totals(selection.counts)
    words = [f"{t.kept:,} of {t.of:,} {t.what}, {percent(t.kept / t.of)}" for t in totals]
    rows.append(("all", *(Entry(told, strong=True) for told in words)))
    yield Table(
        "What every layer keeps: a filled square is a kept unit, a bar the share that is kept",
        tuple(header),
        tuple(rows),
        words=frozenset(range(1, len(header))),
    )
    ids = zip(space.blocks, portions, selection.heads().values(), strict=True)
    yield Table(
        "The kept units of every block, by name",
        ("block", "kept", "of", "share", "which"),
        tuple(
            (
                block.name,
                f"{part.kept:,}",
                f"{part.of:,} {part.what}",
                percent(part.kept / part.of),
                listed(part, kept) or "none",
            )
            for block, part, kept in ids
        ),
        words=frozenset({2, 4}),
        folded=True,
    )


def _cell(selection: Selection, b: int, part: Portion) -> Entry:
    block, told = selection.space.blocks[b], f"{part.kept:,} of {part.of:,} {part.what}"
    if not block.unit.of_attention or block.units > _SQUARES:
        return Entry(told, bar=part.kept / part.of)
    kept = set(selection.heads()[block.name])
    return Entry(told, units=tuple(unit in kept for unit in range(block.units)))
