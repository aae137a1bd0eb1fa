"""Attention that no layout describes works like any other after one traced run."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch
import transformers
from small_builds import built
from torch import Tensor, nn

from cahp_opt.files.records import RecordError
from cahp_opt.space import Unit
from cahp_opt.torch import (
    Anchor,
    SliceError,
    UnsupportedModelError,
    calibrate,
    find_attention,
    from_pretrained,
    head_mask,
    learn_attention,
    save_pretrained,
    slice_heads,
    verify_slice,
)
from cahp_opt.torch.blocks import layouts as words
from cahp_opt.torch.blocks.blocks import LAYOUT
from cahp_opt.torch.blocks.layouts import (
    HeadArgument,
    HeadParameter,
    Layout,
    Order,
    Part,
    Projection,
)
from cahp_opt.torch.checkpoints.checkpoint import LAYOUTS_FILE
from cahp_opt.torch.evaluation.fidelity import PooledEmbedding
from cahp_opt.torch.tracing.learning import (
    attach_layouts,
    learnt_layouts,
    load_layouts,
    save_layouts,
)

HIDDEN, HEADS, EACH = 24, 4, 5
ANCHOR = Anchor("layers.0.mixer", "writes", units=HEADS)


class Mixer(nn.Module):
    """Attention under names of its own, with a temperature for every head."""

    def __init__(self, hidden: int = HIDDEN, heads: int = HEADS, each: int = EACH) -> None:
        super().__init__()
        self.number_of_heads = heads
        self.together = heads * each
        self.asks = nn.Linear(hidden, heads * each)
        self.looks = nn.Linear(hidden, heads * each, bias=False)
        self.tells = nn.Linear(hidden, heads * each)
        self.writes = nn.Linear(heads * each, hidden)
        self.temperature = nn.Parameter(torch.rand(heads, 1, 1) + 0.5)

    def forward(self, x: Tensor, lean: Tensor | None = None) -> Tensor:
        size, length, _ = x.shape
        q, k, v = (
            f(x).view(size, length, self.number_of_heads, -1).transpose(1, 2)
            for f in (self.asks, self.looks, self.tells)
        )
        scores = q @ k.transpose(2, 3) * self.temperature
        if lean is not None:
            scores = scores + lean
        z = (scores.softmax(-1) @ v).transpose(1, 2)
        out: Tensor = self.writes(z.reshape(size, length, self.together))
        return out


class Layer(nn.Module):
    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.norm, self.mixer = nn.LayerNorm(HIDDEN), mixer

    def forward(self, x: Tensor, **more: Tensor) -> Tensor:
        out: Tensor = x + self.mixer(self.norm(x), **more)
        return out


class Stack(nn.Module):
    """A model that is of no library."""

    def __init__(self, make: Callable[[], nn.Module] = Mixer, leaning: int = 0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(make()) for _ in range(3))
        if leaning:
            self.lean = nn.Parameter(torch.randn(1, leaning, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        more = {"lean": self.lean} if hasattr(self, "lean") else {}
        for layer in self.layers:
            x = layer(x, **more)
        return x


def stack(make: Callable[[], nn.Module] = Mixer, **options: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Stack(make, **options).double()
        tiny.stir(model)
    return model.eval()


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"x": torch.randn(2, 6, HIDDEN, generator=generator, dtype=torch.float64)}


def largest_difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).detach().abs().max())


def test_one_anchor_is_enough_for_gates_calibration_and_slices_of_slices() -> None:
    model = stack()
    with pytest.raises(UnsupportedModelError, match="without any attention.*`learn_attention`"):
        find_attention(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert learn_attention(model, [ANCHOR], batch()) == 3
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    attention = find_attention(model)
    assert [(b.name, b.units, b.unit) for b in attention] == [
        (f"layers.{i}.mixer", HEADS, Unit.HEAD) for i in range(3)
    ]
    assert calibrate(model, [batch()], fidelity=PooledEmbedding()).space == attention.space

    kept = tiny.uneven(attention.space, empty=1)
    small = slice_heads(model, kept, batch=batch())
    with torch.no_grad(), head_mask(model, kept):
        masked = model(**batch())
    assert largest_difference(small(**batch()), masked) < 1e-9
    assert [m.temperature.shape[0] for m in (x.mixer for x in small.layers)] == [1, 1, 3]
    assert [m.number_of_heads for m in (x.mixer for x in small.layers)] == [1, 1, 3]
    assert [b.ghost for b in find_attention(small).attention] == [False, True, False]

    copied = pickle.loads(pickle.dumps(copy.deepcopy(small)))
    left = np.array([True, True, False, True, False])
    again = slice_heads(copied, left, batch=batch())
    assert verify_slice(small, again, left, batch()) < 1e-9
    assert torch.equal(small(**batch()), copied(**batch()))


class GroupedMixer(nn.Module):
    """Six heads that share the keys and values of three, in one projection, counted as ``h``."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.kv = 6, 3
        self.looks_and_tells = nn.Linear(HIDDEN, 2 * 3 * EACH)
        self.asks, self.writes = nn.Linear(HIDDEN, 6 * EACH), nn.Linear(6 * EACH, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        size, length, _ = x.shape
        q = self.asks(x).view(size, length, self.h, EACH).transpose(1, 2)
        k, v = self.looks_and_tells(x).view(size, length, 2, self.kv, EACH).permute(2, 0, 3, 1, 4)
        k, v = (t.repeat_interleave(self.h // self.kv, dim=1) for t in (k, v))
        z = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        out: Tensor = self.writes(z.reshape(size, length, -1))
        return out


@pytest.mark.parametrize("unit", [Unit.KV_GROUP, Unit.QUERY_SLOT])
def test_groups_and_short_names_of_counts(unit: Unit) -> None:
    model = stack(GroupedMixer)
    assert learn_attention(model, [Anchor("layers.1.mixer", "writes", 3, heads=6)], batch()) == 3
    (layout,) = learnt_layouts(model)
    assert (layout.heads, layout.kv_heads) == (("h",), ("kv",))
    attention = find_attention(model, unit=unit)
    small = slice_heads(model, tiny.uneven(attention.space, empty=0), batch=batch(), unit=unit)
    left = find_attention(small).space.n
    again = slice_heads(small, np.arange(left) != left - 1, batch=batch())
    assert verify_slice(small, again, np.arange(left) != left - 1, batch()) < 1e-9


class SqueezingMixer(Mixer):
    """What it tells goes through a layer that all heads share, as wide as all heads together."""

    def __init__(self) -> None:
        super().__init__(hidden=HIDDEN, heads=HEADS, each=HIDDEN // HEADS)
        self.squeeze = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor, lean: Tensor | None = None) -> Tensor:
        return super().forward(self.squeeze(x))


def test_layers_that_all_heads_share_stay() -> None:
    model = stack(SqueezingMixer)
    learn_attention(model, [ANCHOR], batch())
    assert learnt_layouts(model)[0].headless == ("squeeze.weight", "squeeze.bias")
    kept = tiny.uneven(find_attention(model).space, empty=2)
    small = slice_heads(model, kept, batch=batch())
    assert verify_slice(model, small, kept, batch()) < 1e-9
    assert small.layers[0].mixer.squeeze.weight.shape == (HIDDEN, HIDDEN)


class IdleMixer(Mixer):
    """Has a layer that this batch does not reach, so that nothing is known about it."""

    def __init__(self) -> None:
        super().__init__(hidden=HIDDEN, heads=HEADS, each=HIDDEN // HEADS)
        self.idle = nn.Linear(HIDDEN, HIDDEN)


def test_what_the_batch_does_not_reach_is_not_taken_for_shared() -> None:
    with pytest.raises(UnsupportedModelError, match="not known how its parameter idle.weight"):
        learn_attention(stack(IdleMixer), [ANCHOR], batch())


def test_arguments_with_heads_are_cut() -> None:
    model = stack(leaning=HEADS)
    learn_attention(model, [ANCHOR], batch())
    assert learnt_layouts(model)[0].arguments == (HeadArgument("lean"),)
    kept = tiny.uneven(find_attention(model).space)
    assert verify_slice(model, slice_heads(model, kept, batch=batch()), kept, batch()) < 1e-9


class MixerConfig(transformers.PretrainedConfig):  # type: ignore[no-untyped-call]
    model_type = "mixer_of_a_test"

    def __init__(self, mixers: int = 3, hidden_size: int = HIDDEN, **kwargs: Any) -> None:
        self.mixers, self.hidden_size, self.vocab_size = mixers, hidden_size, tiny.VOCABULARY
        super().__init__(**kwargs)


class MixerModel(transformers.PreTrainedModel):  # type: ignore[no-untyped-call]
    config_class = MixerConfig
    base_model_prefix = "model"

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(Mixer(config.hidden_size)) for _ in range(config.mixers))
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight)

    def forward(self, input_ids: Tensor, **more: Any) -> tuple[Tensor]:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return (x,)


def custom() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MixerModel(MixerConfig())
        tiny.stir(model)
    return nn.Module.eval(model.double())


def test_folders_remember_what_was_learnt(tmp_path: Path) -> None:
    model = custom()
    assert learn_attention(model, [ANCHOR]) == 3
    kept = tiny.uneven(find_attention(model).space, empty=1)
    small = slice_heads(model, kept)
    assert verify_slice(model, small, kept) < 1e-9
    save_pretrained(small, tmp_path / "first")
    loaded = from_pretrained(tmp_path / "first", model_class=MixerModel)
    assert type(loaded) is MixerModel
    assert learnt_layouts(loaded) == learnt_layouts(model)
    ids = {"input_ids": torch.arange(12).view(2, 6)}
    assert torch.equal(loaded(**ids)[0], small(**ids)[0])
    assert not loaded.get_parameter("layers.1.mixer.asks.weight").requires_grad

    again = slice_heads(loaded, np.array([True, True, True, False, True]))
    save_pretrained(again, tmp_path / "second")
    last = from_pretrained(tmp_path / "second", model_class=MixerModel)
    assert torch.equal(last(**ids)[0], again(**ids)[0])

    file = tmp_path / "second" / LAYOUTS_FILE
    record = json.loads(file.read_text())
    record["layouts"][0]["projections"][0]["parts"] = ["nonsense"]
    file.write_text(json.dumps(record))
    with pytest.raises(RecordError, match=r"cahp_layouts.json cannot be used"):
        from_pretrained(tmp_path / "second", model_class=MixerModel)


def test_stock_attention_that_the_table_lacks(tmp_path: Path) -> None:
    """Funnel keeps its counts in the configuration alone, and has five parameters with heads."""
    config = tiny.configure(
        "FunnelConfig", block_sizes=[1, 1], num_decoder_layers=1, d_head=8, d_inner=40
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.FunnelModel(config)
        tiny.stir(model)
    nn.Module.eval(model.double())
    assert learn_attention(model, [Anchor("encoder.blocks.0.0.attention", "post_proj", 4)]) == 3
    kept = tiny.uneven(find_attention(model).space, empty=1)
    small = slice_heads(model, kept)
    assert verify_slice(model, small, kept) < 1e-9
    save_pretrained(small, tmp_path / "first")
    loaded = from_pretrained(tmp_path / "first")
    left = np.array([True, True, True, False, True])
    again = slice_heads(loaded, left)
    assert verify_slice(small, again, left) < 1e-9


def test_models_of_the_table_have_no_file_of_layouts(tmp_path: Path) -> None:
    model = tiny.BERT.build()
    save_pretrained(slice_heads(model, np.arange(12) % 2 == 0), tmp_path / "pruned")
    assert not (tmp_path / "pruned" / LAYOUTS_FILE).exists()


def test_the_printed_entry_makes_learning_unnecessary(monkeypatch: pytest.MonkeyPatch) -> None:
    model = stack()
    learn_attention(model, [ANCHOR], batch())
    learnt = find_attention(model).attention[0].layout
    entry = eval(str(learnt), vars(words))
    assert entry == learnt
    assert (entry.parameters, entry.heads) == (
        (HeadParameter("temperature", 0),),
        ("number_of_heads",),
    )
    monkeypatch.setattr("cahp_opt.torch.blocks.site_reader.LAYOUTS", (entry,))
    fresh = stack()
    attention = find_attention(fresh)
    assert attention.space == find_attention(model).space
    kept = tiny.uneven(attention.space, empty=0)
    assert verify_slice(fresh, slice_heads(fresh, kept, batch=batch()), kept, batch()) < 1e-9


def test_layouts_survive_their_file_whatever_they_hold(tmp_path: Path) -> None:
    layout = Layout(
        "Odd",
        (Projection("a", (Part.QUERY, Part.KEY), Order.UNIT_BY_UNIT, optional=True),),
        owners=("", "x"),
        outs=("o",),
        when=(("flag", True),),
        parameters=(HeadParameter("p", 1, Part.EVEN_KEY, ndim=2),),
        heads=("h",),
        kv_heads=("k",),
        widths=("w",),
        arguments=(HeadArgument("m", beside=("b",)),),
        headless=("s",),
        shards="t",
    )
    changed = {f.name for f in dataclasses.fields(Layout) if getattr(layout, f.name) != f.default}
    assert changed == {f.name for f in dataclasses.fields(Layout)}
    save_layouts(tmp_path / "x.json", [layout, words.LAYOUTS[0]])
    assert load_layouts(tmp_path / "x.json") == (layout, words.LAYOUTS[0])


# --- refusals ------------------------------------------------------------------------------------


class NormedMixer(Mixer):
    """With a norm over all heads together."""

    def __init__(self) -> None:
        super().__init__()
        self.evens = nn.LayerNorm(HEADS * EACH)
        self.asks = nn.Sequential(self.asks, self.evens)  # type: ignore[assignment]


def test_what_ties_the_heads_together_is_named() -> None:
    model = stack(NormedMixer)
    with pytest.raises(
        UnsupportedModelError, match=r"layers.0.mixer: .*normalisation over all heads"
    ):
        learn_attention(model, [ANCHOR], batch())
    assert learnt_layouts(model) == ()
    olmo = built("Olmo2")
    with pytest.raises(UnsupportedModelError, match="q_norm.weight .* mixes its whole input"):
        learn_attention(olmo, [Anchor("layers.0.self_attn", "o_proj", 4)])


@pytest.mark.parametrize(
    ("anchor", "sentence"),
    [
        (Anchor("layers.0.mixer", "writes", 2), "says 2 units and 2 heads: no attribute gives"),
        (Anchor("layers.0.mixer", "writes", 2, 4), "says 2 units and 4 heads, and .* say 4 and 4"),
        (Anchor("layers.0.mixer", "writes", 10), "serves the units 0, 1, 2 and not the others"),
        (Anchor("layers.0.mixer", "writes", 20), "serves the units"),
        (Anchor("layers.0.mixer", "writes", 3), "cannot have 3 units"),
        (Anchor("layers.0.mixer", "asks", 4), "no linear module before asks"),
        (Anchor("layers.7.mixer", "writes", 4), "names a module that is not there"),
    ],
    ids=lambda value: repr(value) if isinstance(value, Anchor) else "",
)
def test_wrong_anchors_are_refused_and_nothing_is_remembered(anchor: Anchor, sentence: str) -> None:
    model = stack()
    with pytest.raises(ValueError, match=sentence):
        learn_attention(model, [anchor], batch())
    assert learnt_layouts(model) == ()


class MisleadingMixer(Mixer):
    """The attribute with ``head`` in its name counts something else."""

    def __init__(self) -> None:
        super().__init__()
        self.headlines = 2


def test_a_wrong_number_that_an_attribute_confirms_fails_when_slicing() -> None:
    model = stack(MisleadingMixer)
    learn_attention(model, [Anchor("layers.0.mixer", "writes", 2)], batch())
    with pytest.raises(SliceError):
        slice_heads(model, np.arange(6) % 2 == 0, batch=batch())
    learn_attention(model, [ANCHOR], batch())  # learning again replaces what was learnt
    kept = tiny.uneven(find_attention(model).space)
    assert verify_slice(model, slice_heads(model, kept, batch=batch()), kept, batch()) < 1e-9


class SlopedMixer(Mixer):
    """The temperatures are a buffer, which is not cut."""

    def __init__(self) -> None:
        super().__init__()
        slopes = self.temperature.detach()
        del self.temperature
        self.register_buffer("temperature", slopes)


def test_what_a_layout_cannot_say_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="temperature on axis 0 cannot be said"):
        learn_attention(stack(SlopedMixer), [ANCHOR], batch())


class EitherMixer(Mixer):
    """Has a child of one name or of another."""

    def rename(self) -> None:
        self.hears = self.looks
        del self.looks

    def forward(self, x: Tensor, lean: Tensor | None = None) -> Tensor:
        if hasattr(self, "looks"):
            return super().forward(x)
        vars(self)["looks"] = self.hears  # not among the modules
        out = super().forward(x)
        del vars(self)["looks"]
        return out


def test_a_class_whose_modules_differ_needs_several_anchors() -> None:
    model = stack(EitherMixer)
    model.layers[0].mixer.rename()
    with pytest.raises(
        UnsupportedModelError, match=r"layers.1.mixer \(EitherMixer\) has other chil"
    ):
        learn_attention(model, [ANCHOR], batch())
    assert learnt_layouts(model) == ()
    assert learn_attention(model, [ANCHOR, Anchor("layers.1.mixer", "writes", HEADS)], batch()) == 3
    kept = tiny.uneven(find_attention(model).space)
    assert verify_slice(model, slice_heads(model, kept, batch=batch()), kept, batch()) < 1e-9


class DoubleMixer(SqueezingMixer):
    """The layer that all heads share is attention too."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = Mixer()  # type: ignore[assignment]


def test_attention_inside_a_block_is_not_learnt_too() -> None:
    model = stack(DoubleMixer)
    learn_attention(model, [ANCHOR], batch())
    first = learnt_layouts(model)
    with pytest.raises(UnsupportedModelError, match=r"squeeze .*a module around it is a block"):
        learn_attention(model, [Anchor("layers.0.mixer.squeeze", "writes", HEADS)], batch())
    assert learnt_layouts(model) == first
    assert [b.name for b in find_attention(model).attention] == [
        f"layers.{i}.mixer" for i in range(3)
    ]


def test_a_learnt_module_that_was_changed_is_refused() -> None:
    model = stack()
    learn_attention(model, [ANCHOR], batch())
    model.layers[1].mixer.writes = nn.Identity()
    with pytest.raises(UnsupportedModelError, match=r"layers.1.mixer \(Mixer\) is not understood"):
        find_attention(model)
    fresh = stack()
    with pytest.raises(UnsupportedModelError, match="has other children"):
        attach_layouts(fresh, [Layout("Mixer", (Projection("nothing", (Part.QUERY,)),))])
    assert LAYOUT not in vars(fresh.layers[0].mixer)
