"""Planted errors do not get past the check of a slice, and leave the model as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny_models as tiny
import torch
import transformers
from planted_bugs import BUGS, alternating
from tiny_models import run, uneven
from torch import Tensor, nn

from cahp_opt.space import Unit
from cahp_opt.torch.blocks.finder import find_attention
from cahp_opt.torch.slicing.bypass import bypass_empty
from cahp_opt.torch.slicing.slicing import selection_of, slice_heads
from cahp_opt.torch.slicing.verification import SliceError, verify_slice

QUICK = (
    "GPT-NeoX's fused rows part by part",
    "BERT's head count stale",
    "MPNet's bias argument with all heads",
    "Llama's query heads with other keys",
    "gates over the dimensions of a head",
    "columns of other heads",
)
"""A few of the planted bugs; test_torch_mutations.py has all of them."""


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "copy"])
def test_planted_bugs_are_caught_and_the_model_is_as_before(
    name: str, dtype: torch.dtype, in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug = BUGS[name]
    model = bug.build().to(dtype)
    reference = copy.deepcopy(model)
    kept = uneven(find_attention(model).space)
    with monkeypatch.context() as patch:
        bug.plant(patch)
        # In half precision differentiation is asked first.
        with pytest.raises(SliceError, match=f"{bug.sentence}|laid out in another way"):
            slice_heads(model, kept, in_place=in_place)
    for key, value in reference.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    assert find_attention(model).space == find_attention(reference).space
    for block, before in zip(find_attention(model), find_attention(reference), strict=True):
        assert block.module._forward_pre_hooks.keys() == before.module._forward_pre_hooks.keys()
        public = {k for k in vars(before.module) if k[0] != "_"}
        assert {k for k in vars(block.module) if k[0] != "_"} == public
    assert torch.equal(run(model, tiny.batch()), run(reference, tiny.batch()))
    slice_heads(model, kept, in_place=in_place)


@pytest.mark.parametrize(
    "name", [name for name, bug in BUGS.items() if bug.neurons and "LoRA" not in name]
)
def test_planted_bugs_of_neurons_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bug = BUGS[name]
    model = bug.build()
    kept = alternating(bug.blocks(model).space, empty=bug.empty)
    with monkeypatch.context() as patch:
        bug.plant(patch)
        with pytest.raises(SliceError, match=bug.sentence):
            slice_heads(bug.blocks(model), kept)
    slice_heads(bug.blocks(model), kept)


def test_a_check_cut_short_restores_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.GPT2.build()
    before = run(model, tiny.batch())

    def interrupted(*args: object) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cahp_opt.torch.slicing.slicing.check_outputs", interrupted)
        with pytest.raises(KeyboardInterrupt):
            slice_heads(model, uneven(find_attention(model).space), in_place=True)
    assert torch.equal(run(model, tiny.batch()), before)
    assert selection_of(model) is None


def test_verification_tells_two_selections_apart() -> None:
    model = tiny.LLAMA_GQA.build()
    kept = uneven(find_attention(model).space)
    small = slice_heads(model, kept)
    other = kept.copy()
    other[2], other[3] = True, False
    with pytest.raises(SliceError, match=r"block 'model.layers.0.self_attn' by \d"):
        verify_slice(model, small, other)


def test_a_keep_set_of_query_slots_is_verified_in_its_own_units() -> None:
    model = tiny.LLAMA_GQA.build()
    kept = uneven(find_attention(model, unit=Unit.QUERY_SLOT).space)
    small = slice_heads(model, kept, unit=Unit.QUERY_SLOT)
    assert verify_slice(model, small, kept, unit=Unit.QUERY_SLOT) <= 1e-5


class Masked(nn.Module):
    """A model of which some outputs are infinite on purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny.BERT.build()

    def forward(self, **inputs: Tensor) -> Tensor:
        logits: Tensor = self.inner(**inputs).logits
        return logits.index_fill(1, torch.tensor([0]), -torch.inf)


def test_outputs_that_are_infinite_alike_do_not_differ() -> None:
    model = Masked()
    kept = uneven(find_attention(model).space)
    small = slice_heads(model, kept, batch=tiny.batch())
    assert verify_slice(model, small, kept, tiny.batch()) <= 1e-5


def test_an_encoder_decoder_takes_its_decoder_input_from_labels() -> None:
    """As in calibration: labels themselves never reach a model."""
    model = tiny.named("t5").build()
    kept = uneven(find_attention(model).space, empty=0)
    batch = {**tiny.batch(), "labels": tiny.batch(length=5)["input_ids"]}
    small = slice_heads(model, kept, batch=batch)
    assert verify_slice(model, small, kept, batch) <= 1e-5
    assert bypass_empty(small, batch) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_a_model_that_takes_something_else_asks_for_a_batch(dtype: torch.dtype) -> None:
    """The configuration looks like that of a model of images, and the model takes videos."""
    sizes: dict[str, Any] = {name: tiny.SIZES[name] for name in ("hidden_size", "image_size")}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40}
    config = transformers.VideoMAEConfig(**sizes, patch_size=4, num_frames=4)
    model: Any = transformers.VideoMAEModel(config)
    model.to(dtype)
    kept = uneven(find_attention(model).space)
    with pytest.raises(
        ValueError, match=r"`batch` is needed .*VideoMAEModel does not run .*unpack"
    ):
        slice_heads(model, kept)
    batch = {"pixel_values": torch.randn(1, 4, 3, tiny.PIXELS, tiny.PIXELS, dtype=dtype)}
    slice_heads(model, kept, batch=batch)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_models_with_adapters_need_no_batch() -> None:
    peft: Any = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["query"], init_lora_weights=False)
    model: Any = peft.get_peft_model(tiny.BERT.build(), config)
    kept = uneven(find_attention(model).space)
    assert verify_slice(model, slice_heads(model, kept), kept) <= 1e-5


@pytest.mark.parametrize("seed", range(4))
def test_rounding_of_large_activations_is_no_difference(seed: int) -> None:
    """Language models have a few dimensions that their norms blow up, and sharp attention from it."""
    model = tiny.named("gpt-oss").build(seed=seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight[3] *= 50
    slice_heads(model, uneven(find_attention(model).space))


def test_a_model_that_overflows_is_told_from_a_wrong_slice() -> None:
    model = tiny.LLAMA_GQA.build().half()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "v_proj" in name:
                weight *= 1e5
    kept = uneven(find_attention(model).space)
    with pytest.raises(ValueError, match=r"`model` computes NaN.* before slicing"):
        slice_heads(model, kept)


def one_former() -> Any:
    """A model of images that reads what it is asked about them as text."""
    stages = [f"stage{i}" for i in range(1, 5)]
    sizes: dict[str, Any] = {"embed_dim": 8, "depths": [1] * 4, "num_heads": [2] * 4}
    of: Any = transformers
    swin = of.SwinConfig(image_size=32, patch_size=4, window_size=4, out_features=stages, **sizes)
    widths = dict.fromkeys(("hidden_dim", "conv_dim", "mask_dim", "text_encoder_width"), 32)
    config = of.OneFormerConfig(
        backbone_config=swin,
        num_queries=4,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        text_encoder_num_layers=1,
        text_encoder_vocab_size=100,
        dim_feedforward=16,
        encoder_feedforward_dim=16,
        **widths,
    )
    return of.OneFormerModel(config).eval()


def musicgen_melody() -> Any:
    """A model of which every example has a row of ids for each codebook of its decoder."""
    ends = {"pad_token_id": 47, "bos_token_id": 47}
    t5 = {"d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 1, "num_heads": 4, "vocab_size": 48}
    sound = {"num_filters": 4, "hidden_size": 16, "codebook_dim": 16, "codebook_size": 64}
    decoder = {"vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "ffn_dim": 40, **ends}
    decoder |= {"num_attention_heads": 4, "max_position_embeddings": 40, "num_codebooks": 2}
    of: Any = transformers
    config = of.MusicgenMelodyConfig(
        text_encoder=of.T5Config(**t5).to_dict(),
        audio_encoder=of.EncodecConfig(upsampling_ratios=[8, 4], **sound).to_dict(),
        decoder=of.MusicgenMelodyDecoderConfig(**decoder).to_dict(),
    )
    return of.MusicgenMelodyForConditionalGeneration(config).eval()


def bros_spade() -> Any:
    """A model that needs a box and a mask for every token, and no token without a relation."""
    sizes = {"vocab_size": 48, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    of: Any = transformers
    config = of.BrosConfig(**sizes, intermediate_size=40)
    return of.BrosSpadeEEForTokenClassification(config).eval()


def ids_of(*shape: int) -> Tensor:
    return torch.randint(3, 47, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("build", [one_former, musicgen_melody, bros_spade])
def test_inputs_that_cannot_be_made_up_are_asked_for(build: Any) -> None:
    model = build()
    kept = uneven(find_attention(model).space)
    with pytest.raises(ValueError, match="`batch` is needed to check the sliced model"):
        slice_heads(model, kept)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers 4, in its own code
def test_a_trial_of_ours_that_the_unpruned_model_cannot_take_is_left_out() -> None:
    ids = ids_of(2, 6)
    bros = {"bbox": torch.rand(2, 6, 4), "attention_mask": torch.ones_like(ids)}
    for model, batch in (
        (bros_spade(), {"input_ids": ids, **bros}),
        (bros_spade(), {"input_ids": ids, **bros, "attention_mask": (ids > 9).long()}),
        (musicgen_melody(), {"input_ids": ids, "decoder_input_ids": ids_of(4, 5)}),
        (OnlyWhole(), tiny.batch(padded=False)),
    ):
        kept = uneven(find_attention(model).space)
        small = slice_heads(model, kept, batch=batch)
        assert verify_slice(model, small, kept, batch) <= 1e-5


class OnlyWhole(Masked):
    """A model that cannot have padding."""

    def forward(self, **inputs: Tensor) -> Tensor:
        if not bool(inputs.get("attention_mask", torch.ones(1)).all()):
            raise KeyError("padding")
        logits: Tensor = self.inner(**inputs).logits
        return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_a_batch_that_the_unpruned_model_cannot_take_is_not_blamed_on_the_slice(
    dtype: torch.dtype,
) -> None:
    model = bros_spade().to(dtype)
    kept = uneven(find_attention(model).space)
    with pytest.raises(ValueError, match="`batch` cannot be run by Bros.* before slicing: .*bbox"):
        slice_heads(model, kept, batch={"input_ids": ids_of(2, 6)})
    whole = OnlyWhole()
    with pytest.raises(ValueError, match="even before slicing: 'padding'"):
        slice_heads(whole, uneven(find_attention(whole).space), batch=tiny.batch())


def test_made_up_ids_that_fill_need_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.BERT.build(pad_token_id=5)
    made = {"input_ids": torch.full((2, 8), 5)}
    monkeypatch.setattr("cahp_opt.torch.running.trials.sample_inputs", lambda model: made)
    slice_heads(model, uneven(find_attention(model).space))
