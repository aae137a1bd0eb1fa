"""Feed-forward parts that are left as they are, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]

from cahp_opt.torch.blocks.blocks import submodules, within
from cahp_opt.torch.blocks.feed_forward_layouts import ELSEWHERE, TIES, Feed
from cahp_opt.torch.blocks.linear_layers import row_weight

EXPERTS = (
    "a router chooses among its experts, so every token runs other neurons; only feed-forward parts that "
    "every token runs are pruned"
)
"""Why experts stay as they are."""

_FUSED = (
    "torch.nn.TransformerEncoderLayer hands its weights to a fused kernel without calling its layers, so it "
    "cannot be gated; call `explicit_attention(model)` first"
)
_CLASSES = ("mlp", "ffn", "ffw", "feedforward")
_NAMES = ("mlp", "ffn", "ff", "feed_forward", "intermediate")
_OTHER = (*ELSEWHERE, "head", "pool", "project", "patch", "position", "attention", "attn")


def holds_experts(place: str, module: nn.Module) -> bool:
    """Whether a module holds experts that a router chooses among; shared ones run for every token."""
    name, label = place.rpartition(".")[2].lower(), type(module).__name__.lower()
    listed = "expert" in name and isinstance(module, (nn.ModuleList, nn.ModuleDict))
    shared = "shared" in name or ("sharedexpert" in label and name != "experts")
    return not shared and (listed or label.removesuffix("mlp").endswith(("expert", "experts")))


def tie(site: nn.Module, feed: Feed, width: int) -> str | None:
    """What ties the neurons of a part together, or depends on them in an unknown way; None if nothing shows.

    Whatever has as many entries as there are neurons stands between the layers, unless the stream is as wide.

    Args:
        site: the module that holds the part.
        feed: its layout.
        width: its neurons.
    """
    if isinstance(site, nn.TransformerEncoderLayer) and isinstance(
        site.self_attn, nn.MultiheadAttention
    ):
        return _FUSED
    layers = (*feed.ins, feed.out)
    sizes = {width, feed.stretches * width} - {row_weight(site.get_submodule(feed.out)).shape[0], 1}
    for around in dict.fromkeys(layer.rpartition(".")[0] for layer in layers):
        holder = site.get_submodule(around)
        for name, how in TIES:
            if value := getattr(holder, name, None):
                return f"its {name} is {value}, which {how}, so they cannot be removed one by one"
        layer_itself = any(_names_attention(child) for child in holder.children())
        before = any(layer.rpartition(".")[0] == around for layer in feed.ins)
        for path, module in submodules(holder):
            full = ".".join(filter(None, (around, path)))
            if any(full == layer or full.startswith(f"{layer}.") for layer in layers):
                continue
            leaf = next(module.children(), None) is None
            norm = leaf and "norm" in type(module).__name__.lower()
            between = norm or isinstance(module, _ConvNd) or not path
            if not between and (layer_itself or not before):
                continue  # the layer's other parts, or what may stand behind this one
            if not before and "." in path:
                continue
            own = dict(module.named_parameters(recurse=False))
            found = next((p for p, t in own.items() if sizes & {*t.shape}), None)
            if norm and (found or not (own or layer_itself)):
                return f"{full} normalises over all of its neurons, so they cannot be removed one by one"
            if found is not None and isinstance(module, _ConvNd):
                return f"{full} is a convolution over its neurons, and only linear layers are cut"
            if found is not None:
                whole = f"{full}.{found}" if full else found
                return f"it is not known how its parameter {whole} depends on the neurons"
    return None


def unlike(model: nn.Module, known: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Modules that look like feed-forward parts and fit no layout: the reason by path.

    Args:
        model: the model.
        known: paths of what is a part, is inside of one, or was refused already.
    """
    told: list[str] = []
    for place, module in submodules(model):
        if not place or any(within(place, other) for other in (*told, *known)):
            continue
        *_, around, name = ("", *place.split("."))
        label = type(module).__name__.lower()
        if name not in _NAMES and not any(word in label for word in _CLASSES):
            continue
        if any(word in f"{around} {name} {label}" for word in _OTHER):
            continue
        own = [path for path, p in module.named_parameters() if p.ndim > 1]
        leaf = next(module.children(), None) is None
        if leaf or not own or any(within(other, place) for other in known):
            continue
        told.append(place)
        if any(isinstance(inner, _ConvNd) for inner in module.modules()):
            yield (
                place,
                "it is a feed-forward part made of convolutions, and only linear layers are cut",
            )
        else:
            more = ", ..." if len(own) > 6 else ""
            yield (
                place,
                f"it looks like a feed-forward part, and its parameters ({', '.join(own[:6])}{more}) fit no "
                "known layout",
            )


def _names_attention(module: nn.Module) -> bool:
    label = type(module).__name__.lower()
    return "attention" in label or "attn" in label
