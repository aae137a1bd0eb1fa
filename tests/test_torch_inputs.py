"""Batches made by hand: what a row gives in company is what it gives alone, or the batch is refused."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch
from test_torch_calibration import assert_same
from torch import Tensor

from cahp_opt.latency import Phase
from cahp_opt.torch import calibrate, refit, slice_heads
from cahp_opt.torch.attention import find_attention
from cahp_opt.torch.evaluation import evaluate
from cahp_opt.torch.timing import time_models
from cahp_opt.torch.unfit_inputs import MissingMaskWarning

Batch = dict[str, Tensor]
TEXTS = [[5, 9, 12, 7], [6, 8], [11, 4, 13, 2, 9, 3], [10]]


def padded(texts: list[list[int]], *, left: bool = False, pad: int = 0, prefix: str = "") -> Batch:
    """The texts as one batch, filled with ``pad``."""
    width = max(map(len, texts))
    ids, mask = torch.full((len(texts), width), pad), torch.zeros(len(texts), width).long()
    for row, text in enumerate(texts):
        where = slice(width - len(text), width) if left else slice(0, len(text))
        ids[row, where], mask[row, where] = torch.tensor(text), 1
    return {f"{prefix}input_ids": ids, f"{prefix}attention_mask": mask}


def alone(texts: list[list[int]]) -> list[Batch]:
    """Every text as a batch of its own."""
    return [padded([text]) for text in texts]


def counted(batch: Batch) -> Batch:
    """The batch with positions that its mask tells."""
    return {**batch, "position_ids": (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)}


def named(name: str, **fields: Any) -> Any:
    """One of the tiny models, in double precision."""
    family = next(f for f in tiny.BUILDS if f.name == name)
    return family.build(**fields).double()


POSITIONS = ("gpt2", "bert", "distilbert", "electra", "albert", "deberta-v2")
FIRST = ("roberta", "mpnet", "modernbert")
"""Their positions move with the padding, and their heads read the first place."""


@pytest.mark.parametrize("name", POSITIONS)
def test_padding_on_the_left_without_positions_is_refused(name: str) -> None:
    model = named(name)
    with pytest.raises(ValueError, match=r"`batches\[1\]`.*example 3 comes out otherwise"):
        calibrate(model, [padded(TEXTS), padded(TEXTS, left=True)])


@pytest.mark.parametrize("name", FIRST)
def test_padding_before_the_place_that_a_head_reads_is_refused(name: str) -> None:
    model = named(name, pad_token_id=0)
    with pytest.raises(ValueError, match="than alone, by [0-9]+% .*: pad on the right\\.$"):
        calibrate(model, [padded(TEXTS, left=True)])


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("opt", False),  # its positions follow the mask
        ("gpt-neox", False),  # rotary: only distances count
        ("llama-gqa", False),
        ("t5", True),  # only distances count
        *((name, True) for name in FIRST),  # distances, or positions that follow the padding id
    ],
)
def test_padding_on_the_left_changes_nothing_where_it_moves_no_position(
    name: str, bare: bool
) -> None:
    model = named(name, bare=bare, pad_token_id=1)
    batch, several = padded(TEXTS, left=True, pad=1), alone(TEXTS)
    if name == "t5":
        batch |= padded(TEXTS, pad=1, prefix="decoder_")
        several = [{**one, **{f"decoder_{k}": v for k, v in one.items()}} for one in several]
    assert_same(calibrate(model, [batch]), calibrate(model, several), rtol=1e-6)


def test_padding_that_a_model_turns_into_nan_is_refused() -> None:
    """Stock BLOOM does in double precision, and not in single."""
    batch = padded(TEXTS, left=True)
    with pytest.raises(ValueError, match="comes out as NaN in the batch"):
        calibrate(named("bloom"), [batch])
    model = named("bloom").float()
    assert_same(calibrate(model, [batch]), calibrate(model, alone(TEXTS)), rtol=1e-3)


def test_positions_that_count_the_tokens_make_it_right() -> None:
    model = named("gpt2")
    left = padded(TEXTS, left=True)
    assert_same(calibrate(model, [counted(left)]), calibrate(model, alone(TEXTS)), rtol=1e-6)
    wrong = {**left, "position_ids": torch.arange(6).expand(4, 6)}
    with pytest.raises(ValueError, match="let `position_ids` count the tokens without the padding"):
        calibrate(model, [wrong])


def test_a_decoder_padded_on_the_left_is_refused_too() -> None:
    model = named("bart")
    source = padded(TEXTS)
    good = {**source, **padded(TEXTS, prefix="decoder_")}
    calibrate(model, [good])
    with pytest.raises(ValueError, match=r"batches\[1\].*pad on the right\."):
        calibrate(model, [good, {**source, **padded(TEXTS, left=True, prefix="decoder_")}])


def test_judging_and_refitting_refuse_it_too() -> None:
    model = named("gpt2")
    small = slice_heads(model, np.arange(12) % 2 == 0)
    before = [p.clone() for p in small.parameters()]
    batches = [padded(TEXTS), padded(TEXTS, left=True)]
    with pytest.raises(ValueError, match=r"batches\[1\].*position_ids"):
        evaluate(model, small, batches)
    with pytest.raises(ValueError, match=r"batches\[1\].*position_ids"):
        refit(small, model, batches)
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), before, strict=True))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "llama-gqa", "bert"])
def test_packed_rows_are_refused(name: str, masked: bool) -> None:
    ids = torch.tensor([TEXTS[0] + TEXTS[1] + TEXTS[3]])
    batch = {"input_ids": ids, "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 0]])}
    batch |= {"attention_mask": torch.ones_like(ids)} if masked else {}
    with pytest.raises(ValueError, match=r"`position_ids` that start again within its rows \[0\]"):
        calibrate(named(name), [batch])


def test_a_mask_that_tells_texts_apart_by_numbers_is_refused() -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    batch = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 2, 2]])}
    with pytest.raises(ValueError, match="has 2 in its `attention_mask`"):
        calibrate(named("gpt2"), [batch])


def test_a_filled_cache_is_refused() -> None:
    model = named("gpt2")
    cache = model(**tiny.batch(padded=False), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="`past_key_values`"):
        calibrate(model, [{**tiny.batch(), "past_key_values": cache}])


@pytest.mark.parametrize("name", ["gpt2", "bart", "bert-cross"])
def test_nothing_runs_with_a_cache(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = next(f for f in tiny.BUILDS if f.name == name)
    model, batch = family.build(), family.batch()
    asked: list[object] = []
    plain = type(model).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs.get("use_cache"))
        return plain(self, *args, **kwargs)

    forward.__signature__ = inspect.signature(plain)  # type: ignore[attr-defined]
    monkeypatch.setattr(type(model), "forward", forward)
    small = slice_heads(model, np.arange(find_attention(model).space.n) % 2 == 0, batch=batch)
    calibrate(model, [batch], divergence_examples=2 * (name == "gpt2"), sensitivity_examples=2)
    evaluate(model, small, [batch])
    time_models({"model": model}, batch, repeats=1)
    if name == "gpt2":
        refit(small, model, [batch])
    assert asked and not any(asked) and None not in asked
    time_models({"model": model}, batch, phase=Phase.DECODE, repeats=1)
    assert asked[-1] is True


def test_a_mask_that_was_forgotten_is_missed() -> None:
    model = named("bert")
    ids = padded(TEXTS)["input_ids"]
    with pytest.warns(
        MissingMaskWarning, match=r"no `attention_mask`, and its examples \[0, 1, 3\]"
    ):
        calibrate(model, [{"input_ids": ids}])
    calibrate(model, [{"input_ids": ids[2:3]}])
