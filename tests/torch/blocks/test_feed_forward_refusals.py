"""Feed-forward parts by the table, and those that are left as they are, each with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch import Tensor, nn

from cahp_opt.torch import (
    UnsupportedModelError,
    explicit_attention,
    find_prunable,
    slice_heads,
    verify_slice,
)
from cahp_opt.torch.blocks.feed_forward_layouts import FEEDS, Feed

WIDTH, INNER = 8, 12


class Part(nn.Module):
    """A feed-forward part of a layout: the last of its inputs, gated by the others."""

    def __init__(self, feed: Feed, **between: nn.Module) -> None:
        super().__init__()
        self.feed = feed
        for path in feed.ins:
            self._place(path, nn.Linear(WIDTH, feed.stretches * INNER))
        self._place(feed.out, nn.Linear(INNER, WIDTH))
        self.names = list(between)
        for name, module in between.items():
            self.add_module(name, module)

    def _place(self, path: str, layer: nn.Module) -> None:
        module: nn.Module = self
        *around, name = path.split(".")
        for child in around:
            if not hasattr(module, child):
                module.add_module(child, nn.Module())
            module = module.get_submodule(child)
        module.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        made = [self.get_submodule(path)(x) for path in self.feed.ins]
        parts: Sequence[Tensor] = [y for out in made for y in out.chunk(self.feed.stretches, -1)]
        z = parts[-1] if len(parts) > 1 else torch.ones(())
        z = z * nn.functional.silu(parts[0])
        for name in self.names:
            z = self.get_submodule(name)(z)
        y: Tensor = x + self.get_submodule(self.feed.out)(z)
        return y


class Routed(nn.Module):
    """Experts in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Part(LLAMA) for _ in range(2))


def holding(part: nn.Module, name: str = "mlp") -> nn.Module:
    model = nn.Module()
    model.add_module(name, part)
    return model


def reasons(model: nn.Module) -> dict[str, str]:
    """Why parts of a model are left alone, beside one that is understood."""
    model.add_module("other", Part(FEEDS[0]))
    prunable = find_prunable(model, heads=False)
    assert [block.place for block in prunable] == ["other"]
    return dict(prunable.skipped)


LLAMA = Feed(("gate_proj", "up_proj"), "down_proj")


def _named(feed: Feed) -> str:
    return f"{'+'.join(feed.ins)}:{feed.out}:{feed.stretches}"


@pytest.mark.parametrize("feed", FEEDS, ids=_named)
def test_every_layout_of_the_table(feed: Feed) -> None:
    model = nn.Sequential()
    model.add_module(feed.inside[0] if feed.inside else "mlp", Part(feed).double())
    prunable = find_prunable(model, heads=False, neuron_group=3)
    (block,) = prunable.feed_forward
    assert block.layout == feed and block.width == INNER and not prunable.skipped
    kept = np.array([False, True, False, True])
    batch = {"input": torch.randn(2, 5, WIDTH, dtype=torch.float64)}
    small = slice_heads(prunable, kept, batch=batch)
    assert verify_slice(prunable, small, kept, batch) <= 1e-12


@pytest.mark.parametrize("feed", [feed for feed in FEEDS if feed.inside], ids=_named)
def test_names_that_say_little_count_inside_of_some_modules_alone(feed: Feed) -> None:
    assert reasons(holding(Part(feed), "tower")) == {}


@pytest.mark.parametrize("name", ["router", "input_layernorm", "multi_modal_projector"])
def test_layers_of_the_same_names_elsewhere_are_no_feed_forward_part(name: str) -> None:
    assert reasons(holding(Part(LLAMA), name)) == {}
    assert reasons(holding(holding(Part(LLAMA)), name)) == {}


def test_a_part_that_leaves_the_stream_is_none() -> None:
    part = Part(LLAMA)
    part.down_proj = nn.Linear(INNER, WIDTH + 1)
    assert list(reasons(holding(part, "last"))) == []


def test_experts_are_refused_by_name() -> None:
    found = reasons(holding(Routed()))
    assert (
        list(found) == ["mlp.experts"]
        and "a router chooses among its experts" in found["mlp.experts"]
    )
    shared = find_prunable(holding(holding(Part(LLAMA), "shared_expert")), heads=False)
    assert [block.place for block in shared] == ["mlp.shared_expert"]
    with pytest.raises(UnsupportedModelError, match="mlp.experts is not, because a router chooses"):
        find_prunable(holding(Routed()), heads=False)


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (nn.LayerNorm(INNER), "between normalises over all of its neurons"),
        (nn.LayerNorm(INNER, elementwise_affine=False), "between normalises over all"),
        (nn.Conv1d(INNER, INNER, 1), "between is a convolution over its neurons"),
        (nn.Linear(INNER, INNER), "how its parameter between.weight depends on the neurons"),
        (nn.PReLU(INNER), "how its parameter between.weight depends on the neurons"),
    ],
    ids=["norm", "bare norm", "convolution", "another layer", "slopes"],
)
def test_what_stands_between_the_layers(between: nn.Module, reason: str) -> None:
    assert reason in reasons(holding(Part(LLAMA, between=between)))["mlp.down_proj"]


def test_what_stands_between_layers_of_a_whole_layer() -> None:
    model: Any = tiny_models.named("bart").build(bare=True)
    layer = model.encoder.layers[0]
    assert len(find_prunable(model).feed_forward) == 4
    layer.ffn_layernorm = nn.LayerNorm(tiny_models.INNER)
    prunable = find_prunable(model)
    assert len(prunable.feed_forward) == 3
    ((place, reason),) = prunable.skipped
    assert place == "encoder.layers.0.fc2" and "ffn_layernorm normalises" in reason


def test_neurons_chosen_against_each_other_are_refused() -> None:
    part: Any = Part(LLAMA)
    part.activation_sparsity = 0.95
    assert "its activation_sparsity is 0.95" in reasons(holding(part))["mlp.down_proj"]
    part.activation_sparsity = 0.0
    assert len(find_prunable(holding(part), heads=False)) == 1


def test_convolutions_and_unknown_names_are_named() -> None:
    convolved = nn.Sequential(nn.Conv2d(WIDTH, INNER, 1), nn.GELU(), nn.Conv2d(INNER, WIDTH, 1))
    assert "made of convolutions" in reasons(holding(convolved))["mlp"]
    strange = reasons(holding(Part(Feed(("inward",), "outward"))))["mlp"]
    assert (
        "looks like a feed-forward part" in strange and "inward.weight, outward.weight" in strange
    )


def test_weights_of_another_kind_are_left_alone() -> None:
    class Packed(nn.Linear):
        """Another layer's code may do anything."""

    part = Part(LLAMA)
    part.up_proj = Packed(WIDTH, INNER)
    assert "up_proj is a Packed" in reasons(holding(part))["mlp.down_proj"]


def test_torchs_own_layers_need_to_be_made_explicit() -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(WIDTH, 2, INNER, batch_first=True))
    with pytest.raises(UnsupportedModelError, match=r"explicit_attention\(model\)"):
        find_prunable(model, heads=False)
    explicit_attention(model)
    assert [block.name for block in find_prunable(model, heads=False)] == ["0.linear2"]


def test_two_parts_of_one_layer() -> None:
    layer = nn.Module()
    for feed in FEEDS[:2]:
        part = Part(feed)
        for name, child in part.named_children():
            layer.add_module(name, child)
    found = find_prunable(holding(layer, "layer"), heads=False)
    assert [block.name for block in found] == ["layer.output.dense", "layer.output_query.dense"]
