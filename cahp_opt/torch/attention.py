"""Finding the attention of a model: blocks anchored on their output projection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NoReturn, cast

from torch import nn

from cahp_opt.heads import Unit
from cahp_opt.torch.blocks import (
    GHOST,
    Attention,
    AttentionBlock,
    is_conv1d,
    out_bias,
    out_weight,
    row_weight,
)
from cahp_opt.torch.layouts import LAYOUTS, Layout, Part

__all__ = [
    "Attention",
    "AttentionBlock",
    "UnsupportedModelError",
    "find_attention",
    "is_conv1d",
    "out_bias",
    "out_weight",
]


class UnsupportedModelError(ValueError):
    """The model has attention that is not understood, or none; the sentence names the module."""


def find_attention(model: nn.Module) -> Attention:
    """The attention blocks of ``model``, each checked against the shapes of its weights.

    Raises:
        UnsupportedModelError: if the model has no attention block, or anything that looks like
            attention and is not understood.
    """
    _check_uncompiled(model)
    blocks: list[AttentionBlock] = []
    sites: list[str] = []
    for name, module in _modules(model):
        if any(_within(name, site) for site in sites):
            continue
        layouts = [layout for layout in LAYOUTS if _matches(module, layout)]
        if len(layouts) > 1:
            _refuse(name, module, f"several layouts fit: {', '.join(x.name for x in layouts)}")
        if layouts:
            blocks.append(_block(name or "attention", module, layouts[0]))
            sites.append(name)
    for name, module in _modules(model):
        _check_understood(name, module, sites)
    if not blocks:
        raise UnsupportedModelError(
            f"`model` is a {type(model).__name__} without any attention block that is understood; "
            f"known layouts: {'; '.join(layout.name for layout in LAYOUTS)}."
        )
    _check_unshared(blocks)
    return Attention(tuple(blocks))


def _matches(module: nn.Module, layout: Layout) -> bool:
    paths = (layout.out, *(p.path for p in layout.projections), layout.owner)
    if any(_child(module, path) is None for path in paths):
        return False
    owner = module.get_submodule(layout.owner)
    counts = layout.heads + layout.groups
    return hasattr(owner, layout.head_dim) and any(
        hasattr(owner, c) for c in counts or ("forward",)
    )


def _child(module: nn.Module, path: str) -> nn.Module | None:
    for part in path.split(".") if path else ():
        found: object = getattr(module, part, None)
        if not isinstance(found, nn.Module):
            return None
        module = found
    return module


def _block(name: str, site: nn.Module, layout: Layout) -> AttentionBlock:
    """The block at a site that matches ``layout``, its counts checked against its shapes."""

    def refuse(what: str) -> NoReturn:
        _refuse(name, site, what)

    owner, out = site.get_submodule(layout.owner), site.get_submodule(layout.out)
    for path in (layout.out, *(p.path for p in layout.projections)):
        _check_linear(site.get_submodule(path), path, refuse)

    key_dim = _count(owner, layout.head_dim, refuse)
    counts = {
        a: _count(owner, a, refuse)
        for a in layout.heads + layout.kv_heads + layout.groups
        if hasattr(owner, a)
    }
    width = row_weight(out).shape[1]
    rows = {p.path: row_weight(site.get_submodule(p.path)).shape[0] for p in layout.projections}
    groups = next((counts[a] for a in layout.groups if a in counts), 1)
    key = next((p.path for p in layout.projections if p.parts == (Part.KEY,)), None)
    heads = next((counts[a] for a in layout.heads if a in counts), 0) or (
        rows[key] // key_dim * groups if key else width // key_dim
    )
    kv_heads = heads // groups
    if not heads or not kv_heads or kv_heads * groups != heads:
        refuse(f"{heads} query heads cannot share key/value heads in groups of {groups}")
    if width % heads:
        refuse(f"{layout.out} has {width} input columns, which {heads} heads cannot share equally")
    block = AttentionBlock(
        name=name,
        site=site,
        module=owner,
        out=out,
        layout=layout,
        units=kv_heads,
        unit=Unit.HEAD if kv_heads == heads else Unit.KV_GROUP,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width // heads,
        key_dim=key_dim,
        ghost=bool(getattr(owner, GHOST, False)),
    )
    expected_counts = ((layout.heads, heads), (layout.kv_heads, kv_heads), (layout.widths, width))
    for attributes, value in expected_counts:
        for a in attributes:
            if getattr(owner, a, value) != value:
                refuse(f"its attribute {a} is {getattr(owner, a)}, and its weights have {value}")
    for p in layout.projections:
        expected = block.units * sum(block.rows(part) for part in p.parts)
        if rows[p.path] != expected:
            refuse(
                f"{p.path} has {rows[p.path]} output rows, and {heads} query heads with {kv_heads} "
                f"key/value heads of width {key_dim} need {expected}"
            )
    _check_parameters(block, refuse)
    return block


def _check_linear(module: nn.Module, path: str, refuse: Callable[[str], NoReturn]) -> None:
    """Refuse anything but a plain linear layer: quantised, wrapped and re-parametrised ones."""
    weight: object = getattr(module, "weight", None)
    plain = type(module) is nn.Linear or is_conv1d(module)
    if not (plain and type(weight) is nn.Parameter and weight.is_floating_point()):
        refuse(
            f"{path} is a {type(module).__name__}, and only plain nn.Linear and Conv1D layers are "
            "understood; merge adapters first, and quantise after slicing"
        )


def _count(owner: nn.Module, attribute: str, refuse: Callable[[str], NoReturn]) -> int:
    value: object = getattr(owner, attribute)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        refuse(f"its attribute {attribute} is {value!r}, not a positive whole number")
    return value


def _check_parameters(block: AttentionBlock, refuse: Callable[[str], NoReturn]) -> None:
    """Refuse parameters of the site of which it is not known how they depend on the heads."""
    layout = block.layout
    known = (layout.out, *(p.path for p in layout.projections), *layout.untouched)
    prefix = f"{layout.owner}." if layout.owner else ""
    indexed = {prefix + p.path: p.axis for p in layout.parameters}
    for path, parameter in block.site.named_parameters():
        shape = tuple(parameter.shape)
        if any(path.startswith(k + ".") for k in known):
            continue
        if path in indexed:
            if shape[indexed[path]] != block.heads:
                refuse(f"{path} has shape {list(shape)}, and {block.heads} heads were expected")
        elif any(path.startswith(f"{prefix}{s}.") for s in layout.shared):
            if shape != (block.key_dim,):
                refuse(
                    f"{path} has shape {list(shape)} and not one head's width of {block.key_dim}: "
                    "it ties the heads together, so they cannot be removed one by one"
                )
        else:
            refuse(f"it is not known how its parameter {path} depends on the heads")


def _check_understood(name: str, module: nn.Module, sites: list[str]) -> None:
    """Refuse a module that looks like attention and is neither in a site nor around one."""
    if not _looks_like_attention(module) or any(_within(name, site) for site in sites):
        return
    inner = [m for m in module.modules() if m is not module and _looks_like_attention(m)]
    # A module around others is judged by what it owns itself, so that the innermost one is named.
    around = any(any(True for _ in m.parameters()) for m in inner)
    own = [p for p, _ in module.named_parameters(recurse=not around)]
    if own:
        _refuse(
            name or "the model itself",
            module,
            f"it looks like attention, and its parameters ({', '.join(own[:6])}"
            f"{', ...' if len(own) > 6 else ''}) fit no known layout",
        )


def _looks_like_attention(module: nn.Module) -> bool:
    label = type(module).__name__.lower()
    return "attention" in label or "attn" in label


def _within(path: str, site: str) -> bool:
    return not site or path == site or path.startswith(site + ".")


def _check_unshared(blocks: list[AttentionBlock]) -> None:
    owners: dict[int, str] = {}
    for block in blocks:
        for path in (block.layout.out, *(p.path for p in block.layout.projections)):
            for parameter in block.site.get_submodule(path).parameters():
                first = owners.setdefault(id(parameter), block.name)
                if first != block.name:
                    _refuse(block.name, block.site, f"it shares weights with {first}")


def _check_uncompiled(model: nn.Module) -> None:
    if hasattr(model, "_orig_mod") or any(
        getattr(m, "_compiled_call_impl", None) is not None for m in model.modules()
    ):
        raise UnsupportedModelError(
            "`model` is compiled, and a compiled model ignores gates without a word; hand over the "
            "model from before torch.compile, and compile after slicing."
        )


def _refuse(name: str, module: nn.Module, what: str) -> NoReturn:
    raise UnsupportedModelError(f"{name} ({type(module).__name__}) is not understood: {what}.")


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
