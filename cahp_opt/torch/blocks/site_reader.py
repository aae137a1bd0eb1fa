"""Reading one attention site by a layout: its counts, checked against the shapes of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor, nn

from cahp_opt.arrays import Ints
from cahp_opt.space import Block, Unit
from cahp_opt.torch.blocks.blocks import CUT, LAYOUT, AttentionBlock, Cut, Piece
from cahp_opt.torch.blocks.layouts import (
    GROUPS,
    HEAD_DIMS,
    HEADLESS,
    HEADS,
    KV_HEADS,
    LAYOUTS,
    PARAMETERS,
    WIDTHS,
    HeadParameter,
    Layout,
    Order,
    Part,
    Projection,
)
from cahp_opt.torch.blocks.linear_layers import (
    NotLinearError,
    column_tensors,
    is_linear,
    member,
    row_tensors,
    row_weight,
)
from cahp_opt.torch.blocks.source_code import reads


class Misfit(Exception):
    """A site matches a layout, but its counts or weights contradict it; the message says where."""


def best_layout(site: nn.Module) -> Layout | None:
    """The layout that was learnt for ``site``, or that it matches by its children, if any."""
    if next(site.children(), None) is None:
        return None
    learnt: object = vars(site).get(LAYOUT)
    if isinstance(learnt, Layout) and fits(site, learnt):
        return learnt
    # Few modules have any of these layers, and none fits without: the others need not be asked for the rest.
    named = {path for layout in LAYOUTS for path in layout.outs}
    outs = {path for path in named if _is_linear_at(site, path)}
    fitting = [x for x in LAYOUTS if not outs.isdisjoint(x.outs) and fits(site, x)]
    return max(fitting, key=lambda x: (len(x.when), _found(site, x)), default=None)


def fits(site: nn.Module, layout: Layout) -> bool:
    """Whether ``site`` has the children that ``layout`` names."""
    return _owner_path(site, layout) is not None


def read_block(place: str, site: nn.Module, layout: Layout, unit: Unit | None) -> AttentionBlock:
    """The block at ``site``.

    Args:
        place: path of the site in the model.
        site: a module that ``layout`` fits.
        layout: the layout.
        unit: the kind of the units; None for heads, or key/value groups if heads share them.

    Raises:
        Misfit: if counts and weights contradict each other, or a weight is not understood.
    """
    reader = _Reader(site, layout)
    heads, kv_heads = reader.heads, reader.kv_heads
    cut: Cut | None = getattr(reader.owner, CUT, None)
    unit = unit if cut is None else cut.unit
    group = heads // kv_heads
    if kv_heads == 1 and unit is not Unit.KV_GROUP and unit is not Unit.QUERY_SLOT:
        # One key/value head serves all query heads, and stays for them.
        units, unit, of_head = heads, Unit.HEAD, np.arange(heads)
        of_kv = np.full(1, -1 if heads > 1 else 0)
    elif unit is Unit.QUERY_SLOT and (group > 1 or cut is not None):
        units, of_head, of_kv = group, np.arange(heads) % group, np.full(kv_heads, -1)
    else:
        shared = group > 1 or (cut is not None and unit is Unit.KV_GROUP)
        units, unit = kv_heads, Unit.KV_GROUP if shared else Unit.HEAD
        of_head, of_kv = np.arange(heads) // group, np.arange(kv_heads)
    columns = np.repeat(of_head, reader.head_dim)
    return AttentionBlock(
        name=place or "attention",
        place=place,
        site=site,
        module=reader.owner,
        out=reader.out,
        layout=layout,
        units=units,
        unit=unit,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=reader.head_dim,
        key_dim=reader.key_dim,
        pieces=tuple(reader.pieces(of_head, of_kv, columns)),
        columns=columns,
        cut=Cut.nothing(Block(place or "attention", units, unit)) if cut is None else cut,
    )


class _Reader:
    """The counts of a site by its weights, checked against its attributes."""

    def __init__(self, site: nn.Module, layout: Layout) -> None:
        owner_path = _owner_path(site, layout)
        assert owner_path is not None  # the caller checked it
        self.layout, self.site = layout, site
        self.prefix = f"{owner_path}." if owner_path else ""
        self.head_words = (*layout.heads, *HEADS)
        self.kv_words = (*layout.kv_heads, *KV_HEADS)
        self.parameters = (*layout.parameters, *PARAMETERS)
        self.owner = site.get_submodule(owner_path)
        self.out_path = next(path for path in layout.outs if _is_linear_at(site, path))
        self.out = site.get_submodule(self.out_path)
        self.projections = [
            p for p in layout.projections if _member(self.owner, p.path) is not None
        ]
        self.width = row_weight(self.out).shape[1]
        self.heads = self._heads()
        if self.width % self.heads:
            raise Misfit(
                f"{self.out_path} has {self.width} input columns, which {self.heads} heads cannot share "
                "equally"
            )
        self.head_dim = self.width // self.heads
        self.kv_heads = self._kv_heads()
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise Misfit(
                f"{self.heads} query heads cannot share {self.kv_heads} key/value heads equally"
            )
        self.key_dim = self._key_dim()
        self._check_counts()

    def pieces(self, of_head: Ints, of_kv: Ints, columns: Ints) -> Iterator[Piece]:
        """Every tensor that is cut, given the unit of every head and of every key/value head."""
        taken: set[str] = set()
        try:
            for p in self.projections:
                unit_of = self._unit_of(p, of_head, of_kv)
                order = self._one_shard(p, len(unit_of))
                for path, axis in _tensors(self.owner, p.path):
                    taken.add(self.prefix + path)
                    yield Piece(self.prefix + path, axis, unit_of, order)
        except NotLinearError as error:
            raise Misfit(f"{self.prefix}{error}") from error
        try:
            for path, axis in column_tensors(self.out):
                yield Piece(f"{self.out_path}.{path}", axis, columns)
        except NotLinearError as error:
            raise Misfit(f"{self.out_path} {error}") from error
        # An adapter on a projection has a side that knows of no heads.
        within = (f"{self.out_path}.", *(f"{self.prefix}{p.path}." for p in self.projections))
        for path, parameter in self.site.named_parameters():
            if path in taken or path in self.layout.headless or path.startswith(within):
                continue
            found = next((p for p in self.parameters if _names(p, path, parameter)), None)
            if found is not None:
                of = of_head if found.part is Part.EVEN else of_kv
                yield Piece(path, found.axis, _shared(path, parameter.shape[found.axis], of))
            else:
                self._check_headless(path, parameter)

    def _rows(self, p: Projection) -> int:
        member = _member(self.owner, p.path)
        return (
            member.shape[0] if isinstance(member, Tensor) else row_weight(_module(member)).shape[0]
        )

    def _part(self, part: Part) -> Projection | None:
        return next((p for p in self.projections if p.parts == (part,)), None)

    def _attributes(self, names: Sequence[str]) -> dict[str, int]:
        return {a: _count(self.owner, a) for a in names if getattr(self.owner, a, None) is not None}

    def _in_config(self, names: Sequence[str]) -> dict[str, int]:
        """Counts that a module without such attributes reads from its configuration while it runs."""
        config: object = getattr(self.owner, "config", None)
        read = [a for a in names if reads(type(self.owner), a, of="config")]
        found = {a: getattr(config, a, None) for a in read}
        return {a: n for a, n in found.items() if type(n) is int and n > 0}

    def _heads(self) -> int:
        known = self._attributes(self.head_words) or self._in_config(self.head_words)
        if known:
            return next(iter(known.values()))
        widths = self._attributes(HEAD_DIMS)
        if not widths:
            raise Misfit("no attribute gives the number or the width of its heads")
        return max(1, self.width // widths.get("v_head_dim", next(iter(widths.values()))))

    def _kv_heads(self) -> int:
        known = self._attributes(self.kv_words) or self._in_config(self.kv_words)
        if known:
            return next(iter(known.values()))
        groups = self._attributes(GROUPS)
        if groups:
            return self.heads // next(iter(groups.values()))
        key, query = self._part(Part.KEY), self._part(Part.QUERY)
        if key is not None and query is not None:
            return self._rows(key) * self.heads // self._rows(query)
        fused = next((p for p in self.projections if len(p.parts) > 1), None)
        if fused is not None:
            queries = self.width if Part.QUERY in fused.parts else 0
            return (self._rows(fused) - queries) // (2 * self.head_dim)
        return self.heads

    def _key_dim(self) -> int:
        key = self._part(Part.KEY)
        return self._rows(key) // self.kv_heads if key is not None else self.head_dim

    def _unit_of(self, p: Projection, of_head: Ints, of_kv: Ints) -> Ints:
        rows = self._rows(p)
        by_part = {
            Part.QUERY: of_head,
            Part.EVEN: of_head,
            Part.KEY: of_kv,
            Part.VALUE: of_kv,
            Part.EVEN_KEY: of_kv,
        }
        path = self.prefix + p.path
        if p.parts == (Part.VALUE,) and rows != self.kv_heads * self.head_dim:
            raise Misfit(
                f"{path} has {rows} output rows, and {self.kv_heads} key/value heads of width "
                f"{self.head_dim} need {self.kv_heads * self.head_dim}"
            )
        if len(p.parts) == 1:
            return _shared(path, rows, by_part[p.parts[0]])
        owners = [np.repeat(by_part[part], self.head_dim) for part in p.parts]
        if sum(map(len, owners)) != rows:
            raise Misfit(
                f"{path} has {rows} output rows, and {self.heads} query heads with {self.kv_heads} "
                f"key/value heads of width {self.head_dim} need {sum(map(len, owners))}"
            )
        if p.order is Order.PART_BY_PART:
            return np.concatenate(owners)
        runs = self._shards() if p.order is Order.SHARD_BY_SHARD else self.kv_heads
        return np.concatenate([o.reshape(runs, -1) for o in owners], axis=1).reshape(-1)

    def _shards(self) -> int:
        shards = _count(self.owner, self.layout.shards)
        if self.heads % shards:
            raise Misfit(f"its {self.heads} heads cannot be in {shards} shards equally")
        return shards

    def _one_shard(self, p: Projection, rows: int) -> Ints | None:
        """The rows of a projection that is stored shard by shard, in the order of one shard."""
        if p.order is not Order.SHARD_BY_SHARD:
            return None
        stored = np.arange(rows).reshape(self._shards(), len(p.parts), -1)
        return stored.swapaxes(0, 1).reshape(-1)

    def _check_counts(self) -> None:
        sizes = {self.head_dim, self.key_dim}
        for p in self.projections:
            if len(p.parts) == 1:
                count = self.heads if p.parts[0] in (Part.QUERY, Part.EVEN) else self.kv_heads
                sizes.add(self._rows(p) // count)
        widths = {n * size for n in (self.heads, self.kv_heads) for size in sizes}
        allowed: tuple[tuple[Sequence[str], set[int]], ...] = (
            (self.head_words, {self.heads}),
            (self.kv_words, {self.kv_heads}),
            (GROUPS, {self.heads // self.kv_heads}),
            (HEAD_DIMS, sizes | widths),  # LXMERT calls all heads together `head_size`
            (WIDTHS, widths),
        )
        for names, values in allowed:
            for attribute, value in self._attributes(names).items():
                if value not in values:
                    raise Misfit(
                        f"its attribute {attribute} is {value}, and its weights have "
                        f"{' or '.join(map(str, sorted(values)))}"
                    )

    def _counts_before(self) -> set[int]:
        """The numbers of query and key/value heads before any cut, if there were several.

        A parameter without heads keeps its shape in a cut; if it has as many entries as there are
        heads left, such as two coordinates beside two heads, that is a coincidence.
        """
        cut: Cut | None = getattr(self.owner, CUT, None)
        group = self.heads // self.kv_heads
        if cut is None:
            counts = {self.heads, self.kv_heads}
        elif cut.unit is Unit.QUERY_SLOT:
            counts = {self.kv_heads, self.kv_heads * cut.units}
        else:
            counts = {cut.units, cut.units * group} if cut.unit is Unit.KV_GROUP else {cut.units}
        return counts - {1}

    def _check_headless(self, path: str, parameter: Tensor) -> None:
        """Refuse a parameter that may depend on the heads in an unknown way."""
        if any(part.startswith(HEADLESS) for part in path.split(".")):
            return
        shape = tuple(parameter.shape)
        one = {self.key_dim, self.head_dim}
        many = {n * size for n in self._counts_before() for size in (1, *one)} - one
        if shape and many & {*shape}:
            if len(shape) == 1 and "norm" in path:
                raise Misfit(
                    f"{path} has shape {list(shape)} and not one head's width of {self.key_dim}: it ties "
                    "the heads together, so they cannot be removed one by one"
                )
            raise Misfit(f"it is not known how its parameter {path} depends on the heads")


def _shared(path: str, size: int, of: Ints) -> Ints:
    """The unit of every entry of an axis that some heads share equally."""
    if size % len(of):
        raise Misfit(f"{path} has {size} entries, which {len(of)} heads cannot share equally")
    return np.repeat(of, size // len(of))


def _names(p: HeadParameter, path: str, parameter: Tensor) -> bool:
    return (path == p.path or path.endswith("." + p.path)) and p.ndim in (None, parameter.ndim)


def _owner_path(site: nn.Module, layout: Layout) -> str | None:
    """The first of the layout's owners that fits, or None if the site does not match the layout."""
    if isinstance(site, nn.MultiheadAttention):
        return None  # its output projection never runs as a module; see explicit.py
    for path in layout.owners:
        owner = _member(site, path) if path else site
        if isinstance(owner, nn.Module) and _fits(owner, layout):
            return path if any(_is_linear_at(site, out) for out in layout.outs) else None
    return None


def _fits(owner: nn.Module, layout: Layout) -> bool:
    return (
        all(_usable(_member(owner, p.path)) for p in layout.projections if not p.optional)
        and all(getattr(owner, a, None) == value for a, value in layout.when)
        and any(_usable(_member(owner, p.path)) for p in layout.projections if _asks(p))
    )


def _asks(p: Projection) -> bool:
    """Whether the projection makes queries, without which there is no attention."""
    return bool({Part.QUERY, Part.EVEN} & {*p.parts})


def _found(site: nn.Module, layout: Layout) -> int:
    owner = site.get_submodule(_owner_path(site, layout) or "")
    return sum(_usable(_member(owner, p.path)) for p in layout.projections)


def _usable(member: object) -> bool:
    if isinstance(member, nn.Module):
        return is_linear(member)
    return member is not None and isinstance(member, nn.Parameter)


def _is_linear_at(site: nn.Module, path: str) -> bool:
    member = _member(site, path)
    return isinstance(member, nn.Module) and is_linear(member)


def _member(module: nn.Module, path: str) -> nn.Module | nn.Parameter | None:
    """The module or parameter at a path; None if there is none."""
    found: object = module
    for part in path.split("."):
        found = member(found, part)
        if found is None:  # as mostly; whether something is a parameter takes longer to say
            return None
    return found if isinstance(found, nn.Module | nn.Parameter) else None


def _module(member: object) -> nn.Module:
    assert isinstance(member, nn.Module)
    return member


def _tensors(owner: nn.Module, path: str) -> Iterator[tuple[str, int]]:
    member = _member(owner, path)
    if isinstance(member, nn.Parameter):
        yield path, 0
        return
    try:
        for inner, axis in row_tensors(_module(member)):
            yield f"{path}.{inner}", axis
    except NotLinearError as error:
        raise NotLinearError(f"{path} {error}") from error


def _count(owner: nn.Module, attribute: str) -> int:
    value: object = getattr(owner, attribute)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # some configurations divide their counts with /
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Misfit(f"its attribute {attribute} is {value!r}, not a positive whole number")
    return value
