"""Calibration of every kind of model: encoder-decoders, images, sound, two towers, shared blocks."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from batches_by_hand import assert_same
from torch import Tensor, nn

from cahp_opt import Budget, Problem, select
from cahp_opt.objectives import ExplainedVariance
from cahp_opt.solvers import DynamicProgram
from cahp_opt.space import Unit
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.torch.blocks.finder import find_attention
from cahp_opt.torch.calibration.calibration import calibrate
from cahp_opt.torch.evaluation.evaluation import evaluate
from cahp_opt.torch.evaluation.fidelity import ClassLogits, Fidelity, PooledEmbedding
from cahp_opt.torch.recovery.refitting import refit
from cahp_opt.torch.slicing.slicing import slice_heads

Batch = dict[str, Tensor]

TEXT: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 20,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 47,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 16,
    "patch_size": 8,
}
T5: dict[str, Any] = {
    "vocab_size": 48,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}
BART: dict[str, Any] = {
    "vocab_size": 48,
    "d_model": 32,
    **{f"{p}_layers": 2 for p in ("encoder", "decoder")},
    **{f"{p}_attention_heads": 4 for p in ("encoder", "decoder")},
    **{f"{p}_ffn_dim": 40 for p in ("encoder", "decoder")},
    "dropout": 0.0,
}
SWIN: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "num_labels": 3,
    "drop_path_rate": 0.0,
}
WHISPER = {
    **BART,
    "max_source_positions": 10,
    "max_target_positions": 20,
    "num_mel_bins": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
ALBERT = {**TEXT, "embedding_size": 16, "num_hidden_layers": 3, "num_labels": 3}
ALBERT |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def padded(n: int, lengths: list[int]) -> tuple[Tensor, Tensor]:
    ids = torch.randint(3, 47, (len(lengths), n), generator=torch.Generator().manual_seed(n))
    mask = (torch.arange(n) < torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


def images(size: int, n: int = 4) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(size))


def translation(extra: int = 0) -> Batch:
    """As many positions in the encoder as in the decoder, and other padding."""
    ids, mask = padded(7, [7, 5, 4, 6])
    decoder_ids, decoder_mask = padded(7, [3, 7, 2, 5])
    pad = (0, extra)
    return {
        "input_ids": nn.functional.pad(ids, pad),
        "attention_mask": nn.functional.pad(mask, pad),
        "decoder_input_ids": nn.functional.pad(decoder_ids, pad),
        "decoder_attention_mask": nn.functional.pad(decoder_mask, pad),
    }


def pairs(extra: int = 0) -> Batch:
    """As many tokens as an image has patches, and some of them are padding."""
    ids, mask = padded(5, [5, 3, 4, 2])
    ids[torch.arange(4), mask.sum(dim=1) - 1] = 47
    ids, mask = (nn.functional.pad(x, (0, extra)) for x in (ids, mask))
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": images(16)}


def texts(extra: int = 0) -> Batch:
    ids, mask = padded(7, [7, 5, 4, 6])
    return {
        "input_ids": nn.functional.pad(ids, (0, extra)),
        "attention_mask": nn.functional.pad(mask, (0, extra)),
    }


def sound(extra: int = 0) -> Batch:
    features = torch.randn(4, 8, 20, generator=torch.Generator().manual_seed(0))
    ids, mask = padded(6, [6, 2, 4, 5])
    return {
        "input_features": features,
        "decoder_input_ids": nn.functional.pad(ids, (0, extra)),
        "decoder_attention_mask": nn.functional.pad(mask, (0, extra)),
    }


@dataclass(frozen=True)
class Kind:
    """A model of one kind, a batch of four examples for it, and the rows that each block must count."""

    stem: str
    head: str
    config: dict[str, Any]
    batch: Callable[..., Batch]
    counts: list[int]

    def build(self) -> nn.Module:
        config = getattr(transformers, f"{self.stem}Config")(**self.config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: nn.Module = getattr(transformers, f"{self.stem}{self.head}")(config)
            tiny_models.stir(model)
        return model.eval().double()


def doubled(batch: Batch) -> Batch:
    return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


def part(batch: Batch, start: int, stop: int) -> Batch:
    return {k: v[start:stop] for k, v in batch.items()}


ENCODER, DECODER = 22, 17  # real tokens of `translation`
CLIP = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 16}
KINDS = {
    "t5": Kind("T5", "ForConditionalGeneration", T5, translation, [ENCODER] * 2 + [DECODER] * 4),
    "bart": Kind("Bart", "ForConditionalGeneration", BART, translation, [ENCODER] * 2 + [DECODER] * 4),
    "vit": Kind("ViT", "ForImageClassification", {**VISION, "num_labels": 3}, lambda extra=0: {"pixel_values": images(16)}, [20, 20]),
    "swin": Kind("Swin", "ForImageClassification", SWIN, lambda extra=0: {"pixel_values": images(32)}, [256, 256, 64, 64]),
    "clip": Kind("CLIP", "Model", CLIP, pairs, [14, 14, 20, 20]),
    "whisper": Kind("Whisper", "ForConditionalGeneration", WHISPER, sound, [40, 40] + [17] * 4),
    "albert": Kind("Albert", "ForSequenceClassification", ALBERT, texts, [3 * ENCODER]),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_rows_are_those_of_real_tokens_and_batching_changes_nothing(kind: Kind) -> None:
    model = kind.build()
    whole = doubled(kind.batch())
    stats = calibrate(model, [whole])
    assert [m.count for m in stats.moments] == kind.counts
    wider = doubled(kind.batch(extra=2))
    assert_same(calibrate(model, [part(wider, 3, 4), part(wider, 0, 3)]), stats, rtol=1e-7)


PLAIN: dict[str, Fidelity] = {"torch-encoder": PooledEmbedding(), "timm-vit": ClassLogits()}
"""What fits models that are not of transformers, which do not say what they return."""


@pytest.mark.parametrize("family", tiny_models.BUILDS, ids=lambda f: f.name)
def test_every_architecture_from_calibration_to_the_sliced_model(
    family: tiny_models.Family,
) -> None:
    model, fidelity = family.build().double(), PLAIN.get(family.name)
    batch = tiny_models.to(family.batch(), torch.float64)
    stats = calibrate(model, [batch], fidelity=fidelity)
    one_by_one = [part(batch, i, i + 1) for i in range(3)]
    assert_same(calibrate(model, one_by_one, fidelity=fidelity), stats, rtol=1e-6)
    objective = ExplainedVariance.from_stats(stats)
    budget = Budget.heads(stats.space, stats.space.n // 2)
    half = select(Problem(objective, budget), DynamicProgram())
    assert 0 < half.value <= objective.value(np.ones(stats.space.n, dtype=bool))
    small = slice_heads(model, half, batch=batch)
    figures = evaluate(model, small, [batch], fidelity).figures
    assert all(np.isfinite(value) for value in figures.values()) and max(figures.values()) > 0


def gauss_newton(stats: HeadStats) -> list[np.ndarray]:
    return [total.sum for total in stats.gauss_newton.values()]


def test_windows_belong_to_their_example() -> None:
    """Gates on all windows of one example, against the examples one by one."""
    kind = KINDS["swin"]
    model, batch = kind.build(), doubled(kind.batch())
    together = calibrate(model, [batch])
    alone = [calibrate(model, [part(batch, i, i + 1)]) for i in range(4)]
    for whole, *parts in zip(gauss_newton(together), *map(gauss_newton, alone), strict=True):
        assert np.abs(whole).max() > 0
        np.testing.assert_allclose(sum(parts), whole, rtol=1e-8, atol=1e-10 * np.abs(whole).max())


def test_a_decoder_reads_what_its_labels_say() -> None:
    """Labels alone are what a trainer is given; the model makes its decoder's input of them."""
    model = KINDS["t5"].build()
    ids, mask = padded(7, [7, 5, 4])
    labels, real = padded(6, [4, 6, 3])
    labels = labels.masked_fill(real == 0, -100)
    source = {"input_ids": ids, "attention_mask": mask}
    stats = calibrate(model, [{**source, "labels": labels}])
    assert [m.count for m in stats.moments] == [16] * 2 + [13] * 4
    made: Any = model.prepare_decoder_input_ids_from_labels(labels=labels)  # type: ignore[operator]
    given = {**source, "decoder_input_ids": made, "decoder_attention_mask": real, "labels": labels}
    assert_same(stats, calibrate(model, [given]), rtol=1e-9)
    dense = evaluate(model, model, [{**source, "labels": labels}]).figures
    assert dense["kl_per_token"] == 0 and dense["accuracy"] == dense["dense_accuracy"]


@pytest.mark.parametrize("stem", ["Whisper", "Blenderbot", "M2M100"])
def test_labels_suffice_where_the_class_has_no_method_that_shifts_them(stem: str) -> None:
    name = "whisper" if stem == "Whisper" else "bart"
    family = tiny_models.named(name)
    family = dataclasses.replace(family, stem=stem, headed=f"{stem}ForConditionalGeneration")
    model = family.build(pad_token_id=0, decoder_start_token_id=3).double()
    batch = {k: v for k, v in family.batch().items() if not k.startswith("decoder_")}
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    labels = torch.tensor([[7, 8, 9, 6], [5, 6, -100, -100], [9, 8, 7, -100]])
    shifted = torch.tensor([[3, 7, 8, 9], [3, 5, 6, 0], [3, 9, 8, 7]])
    given = {"decoder_input_ids": shifted, "decoder_attention_mask": (labels >= 0).long()}
    expected = calibrate(model, [{**batch, **given, "labels": labels}])
    assert_same(calibrate(model, [{**batch, "labels": labels}]), expected, rtol=1e-9)


def test_pairs_are_wanted() -> None:
    kind = KINDS["clip"]
    batch = doubled(kind.batch())
    with pytest.raises(ValueError, match="one image for every text"):
        calibrate(kind.build(), [{**batch, "pixel_values": batch["pixel_values"][:3]}])


def test_query_slots_are_measured_unit_by_unit() -> None:
    """Columns of a slot lie apart in the model and side by side in the statistics."""
    model = tiny_models.LLAMA_GQA.build().double()
    batch = tiny_models.batch()
    slots = calibrate(model, [batch], unit=Unit.QUERY_SLOT, divergence_examples=3)
    groups = calibrate(model, [batch])
    assert slots.space.units.tolist() == [2] * 3 and groups.space.units.tolist() == [4] * 3
    order = np.arange(32).reshape(4, 2, 4).swapaxes(0, 1).ravel()  # groups x slots x head width
    for a, b in zip(slots.moments, groups.moments, strict=True):
        np.testing.assert_allclose(a.sum, b.sum[order])
        np.testing.assert_allclose(a.scatter, b.scatter[np.ix_(order, order)])
        np.testing.assert_allclose(a.readout, b.readout[np.ix_(order, order)])
    budget = Budget.heads_per_block(slots.space, 1)
    chosen = select(Problem(ExplainedVariance.from_stats(slots), budget), DynamicProgram())
    small = slice_heads(model, chosen)
    before = evaluate(model, small, [batch]).figures["kl_per_token"]
    refit(small, model, [batch])
    assert evaluate(model, small, [batch]).figures["kl_per_token"] < before


@pytest.mark.parametrize(
    ("name", "message"),
    [("swin", "writes rows"), ("albert", "3 times per pass"), ("bart", "more than one attention")],
)
def test_refit_says_what_it_cannot_do(name: str, message: str) -> None:
    kind = KINDS[name]
    model, batch = kind.build(), doubled(kind.batch())
    space = calibrate(model, [batch], gradient_examples=0).space
    small = slice_heads(model, np.arange(space.n) % 2 == 0, batch=batch)
    with pytest.raises(ValueError, match=message):
        refit(small, model, [batch])


@pytest.mark.parametrize("name", ["vit", "clip"])
def test_refit_helps(name: str) -> None:
    kind = KINDS[name]
    model, batch = kind.build(), doubled(kind.batch())
    space = calibrate(model, [batch], gradient_examples=0).space
    small = slice_heads(model, np.arange(space.n) % 2 == 0, batch=batch)
    figure = "cosine_distance" if name == "clip" else "kl"
    before = evaluate(model, small, [batch]).figures[figure]
    refit(small, model, [batch])
    assert evaluate(model, small, [batch]).figures[figure] < 0.8 * before


def test_refit_remembers_nothing_that_others_read() -> None:
    """A layer of the encoder must not be skipped on the way to a cross-attention that reads it."""
    model, batch = KINDS["t5"].build(), doubled(translation())
    space = find_attention(model).space
    small = slice_heads(model, np.arange(space.n) % 2 == 0, batch=batch)
    slow = copy.deepcopy(small)
    refit(small, model, [batch])
    refit(slow, model, [batch], memory=0)
    for (name, mine), other in zip(small.named_parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(mine, other, msg=name)
