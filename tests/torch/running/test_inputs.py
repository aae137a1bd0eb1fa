"""Batches made by hand: what a row gives in company is what it gives alone, or the batch is refused."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch
import transformers
from batches_by_hand import assert_same
from command_line import make_tokenizer, sentences
from torch import Tensor

from cahp_opt.cli import main
from cahp_opt.costs.provenance import Phase
from cahp_opt.runs.texts import Example
from cahp_opt.torch import calibrate, refit, slice_heads
from cahp_opt.torch.blocks.finder import find_attention
from cahp_opt.torch.evaluation.evaluation import evaluate
from cahp_opt.torch.evaluation.fidelity import ClassLogits
from cahp_opt.torch.latency.model_times import time_models
from cahp_opt.torch.running.batches import examples
from cahp_opt.torch.running.preparing import PaddingCheck
from cahp_opt.torch.running.unfit_inputs import MissingMaskWarning, longest
from cahp_opt.torch.texts.encoding import encode, timing_batch

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
    family = tiny.named(name)
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


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_positions_of_one_batch_say_nothing_about_the_next(name: str) -> None:
    model, first = named(name), padded(TEXTS, left=True, pad=1)
    batches = [counted(first), padded(TEXTS[::-1], left=True, pad=1)]
    if name == "opt":  # its positions follow the mask, and are right without any
        calibrate(model, batches)
        return
    with pytest.raises(ValueError, match=r"batches\[1\].*pad on the right"):
        calibrate(model, batches)


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
    family = tiny.named(name)
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


# --- classifiers that find the last token by the id that fills --------------------------------------


def classifier(name: str, **fields: Any) -> Any:
    """A decoder with a head that reads its last token."""
    cls = f"{name}ForSequenceClassification"
    config = {"num_labels": 3, "pad_token_id": 0, **fields}
    family = next(f for f in tiny.BUILDS if f.stem == name)
    return dataclasses.replace(family, headed=cls).build(**config).double()


LAST = ("GPT2", "Llama", "Qwen2", "OPT", "Bloom", "Falcon")


@pytest.mark.parametrize("name", LAST)
def test_a_classifier_that_would_read_the_filler_is_refused(name: str) -> None:
    model = classifier(name)
    model = model.float() if name == "Bloom" else model
    calibrate(model, [padded(TEXTS, pad=0), padded(TEXTS, pad=0, left=name != "GPT2")])
    with pytest.raises(ValueError, match=r"batches\[1\].*fill with 0, the `pad_token_id`"):
        calibrate(model, [padded(TEXTS, pad=0), padded(TEXTS, pad=1)])


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama-gqa", "modernbert"])
def test_what_fills_is_free_where_nothing_looks_for_it(name: str) -> None:
    model = named(name, pad_token_id=0)
    found = calibrate(model, [padded(TEXTS, pad=3)])
    assert_same(found, calibrate(model, alone(TEXTS)), rtol=1e-6)


@pytest.mark.parametrize("stem", ["Bart", "T5"])
def test_a_head_that_looks_for_the_end_of_a_text_must_find_it_behind_no_padding(stem: str) -> None:
    end = tiny.VOCABULARY - 1
    family = next(f for f in tiny.BUILDS if f.stem == stem)
    cls = dataclasses.replace(family, headed=f"{stem}ForSequenceClassification")
    model = cls.build(pad_token_id=0, eos_token_id=end).double()
    texts = [[*text, end] for text in TEXTS]
    calibrate(model, [padded(texts)])
    with pytest.raises(ValueError, match=r"runs alone, and .*number of <eos> tokens.*fill with 0"):
        calibrate(model, [padded(texts, pad=end)])


def test_vectors_with_padding_are_refused_where_the_ids_are_looked_at() -> None:
    model = classifier("Llama")
    batch = padded(TEXTS)
    vectors = model.get_input_embeddings()(batch.pop("input_ids")).detach()
    with pytest.raises(ValueError, match="pass `input_ids`, or rows of one length"):
        calibrate(model, [{**batch, "inputs_embeds": vectors}])
    calibrate(named("llama-gqa"), [{**batch, "inputs_embeds": vectors}])


def test_a_model_that_reads_the_last_place_is_padded_on_the_left() -> None:
    sizes = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 40, "pad_token_id": 5}
    make: Any = transformers.XLNetConfig
    config = make(vocab_size=48, **sizes)
    check = PaddingCheck(transformers.XLNetForSequenceClassification(config))
    check.check(padded(TEXTS, left=True, pad=5), "batch")
    with pytest.raises(ValueError, match="reads the last place: pad on the left"):
        check.check(padded(TEXTS, pad=5), "batch")


@pytest.mark.parametrize("name", LAST)
def test_a_classifier_without_an_id_that_fills_asks_for_it(name: str) -> None:
    model = classifier(name, pad_token_id=None).float()
    calibrate(model, alone(TEXTS))
    with pytest.raises(ValueError, match="set `model.config.pad_token_id` to the id"):
        calibrate(model, [{"input_ids": torch.tensor([[5, 6], [7, 8]])}])
    with pytest.raises(ValueError, match="set `model.config.pad_token_id` to the id"):
        calibrate(model, [padded(TEXTS)])
    with pytest.raises(ValueError, match="set `model.config.pad_token_id` to the id"):
        timing_batch(model, batch_size=2, sequence_length=4)
    assert timing_batch(model, batch_size=1, sequence_length=4)
    if name != "Falcon":  # without an id for it, one row of a batch cannot be padded at all
        with pytest.raises(ValueError, match="the last token of a text by the id that fills"):
            calibrate(model, [examples(padded(TEXTS), 1, 2)])


def test_commands_ask_for_the_id_that_fills(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, texts = tmp_path / "model", tmp_path / "texts"
    classifier("GPT2", pad_token_id=None).float().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    texts.write_text("\n".join(sentences(12)), encoding="utf-8")
    model, given = [str(folder)], ["--text", str(texts)]
    for command in (
        ["calibrate", *model, *given, "--output", str(tmp_path / "stats")],
        ["prune", *model, *given, "--latency", "0.8", "--output-dir", str(tmp_path / "small")],
        ["latency", *model, "--output", str(tmp_path / "profile")],
    ):
        capsys.readouterr()
        assert main(command) == 2
        told = capsys.readouterr().err
        assert "cahp: " in told and "set `model.config.pad_token_id`" in told
        assert "Traceback" not in told


class Words:
    """A tokenizer whose words are numbers."""

    model_max_length, truncation_side, is_fast, eos_token_id = 30, "right", False, None

    def __init__(self, pad: int | None) -> None:
        self.pad_token_id = pad

    def tokenize(self, text: str) -> list[str]:
        return text.split()

    def __call__(self, texts: list[str], pairs: None, **options: Any) -> dict[str, Any]:
        return {"input_ids": [[int(word) for word in text.split()] for text in texts]}


SENTENCES = [Example(" ".join(map(str, text))) for text in TEXTS]


@pytest.mark.parametrize("name", ["GPT2", "Llama"])
def test_texts_are_filled_with_the_id_of_the_model(name: str) -> None:
    model = classifier(name, pad_token_id=1)
    (batch,) = encode(SENTENCES, Words(pad=0), model, batch_size=4, max_length=20)
    assert set(batch["input_ids"][batch["attention_mask"] == 0].tolist()) == {1}
    assert_same(calibrate(model, [batch]), calibrate(model, alone(TEXTS)), rtol=1e-6)
    with pytest.raises(ValueError, match="set `model.config.pad_token_id`"):
        nameless = classifier(name, pad_token_id=None)
        encode(SENTENCES, Words(pad=0), nameless, batch_size=4, max_length=20)


def test_an_id_that_no_table_holds_does_not_fill() -> None:
    """Llama's first configurations name -1."""
    model = named("llama-gqa", pad_token_id=None)
    model.config.pad_token_id = -1
    (batch,) = encode(SENTENCES, Words(pad=0), model, batch_size=4, max_length=20)
    assert int(batch["input_ids"].min()) == 0


@pytest.mark.parametrize("stem", ["Bart", "T5", "MT5"])
def test_texts_to_time_with_suit_classifiers(stem: str) -> None:
    family = next(f for f in tiny.BUILDS if f.stem == stem.removeprefix("M"))
    cls = dataclasses.replace(family, stem=stem, headed=f"{stem}ForSequenceClassification")
    batch = timing_batch(cls.build(eos_token_id=5, pad_token_id=0), batch_size=4, sequence_length=9)
    assert (batch["input_ids"] == 5).sum(dim=1).tolist() == [1] * 4
    assert not (batch["input_ids"] == 0).any()


# --- numbers behind a table, and shapes that are not understood --------------------------------------


@pytest.mark.parametrize("number", [tiny.VOCABULARY, -100])
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "roberta"])
def test_an_id_behind_the_vocabulary_is_named(name: str, number: int) -> None:
    family = tiny.named(name)
    model, batch = family.build(), family.batch()
    batch["input_ids"][1, 2] = number
    sentence = f"`batches\\[0\\]` has the id {number} in `input_ids` of its examples \\[1\\].* {tiny.VOCABULARY}"
    with pytest.raises(ValueError, match=sentence):
        calibrate(model, [batch])
    with pytest.raises(ValueError, match=sentence.replace("batches\\[0\\]", "batch")):
        slice_heads(model, np.arange(find_attention(model).space.n) % 2 == 0, batch=batch)


def test_other_tables_are_looked_at_too() -> None:
    batch = tiny.batch()
    kinds = {**batch, "token_type_ids": torch.ones_like(batch["input_ids"]) * 2}
    with pytest.raises(ValueError, match="the id 2 in `token_type_ids`.*leave it out"):
        calibrate(named("bert"), [kinds])
    both = {**batch, **{f"decoder_{k}": v.clone() for k, v in batch.items()}}
    both["decoder_input_ids"][0, 0] = -1
    with pytest.raises(ValueError, match="the id -1 in `decoder_input_ids`"):
        calibrate(named("bart"), [both])


@pytest.mark.parametrize("name", ["bert", "gpt2", "roberta", "bart"])
def test_more_tokens_than_positions_are_named(name: str) -> None:
    model = named(name)
    most = longest(model)
    assert most is not None
    batch = tiny.batch(length=most + 1, padded=False)
    if name == "bart":
        batch |= {f"decoder_{k}": v for k, v in tiny.batch().items()}
    with pytest.raises(ValueError, match=f"{most + 1} tokens in a row.*{most} positions"):
        calibrate(model, [batch])


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_padding_that_takes_no_position_may_exceed_them(name: str) -> None:
    """GPT-2 is told its positions, and OPT counts the real tokens itself."""
    model = named(name)
    most = longest(model)
    assert most is not None
    text = (torch.arange(most - 2) % 30 + 4).tolist()
    short = padded([text, text[:5]], pad=1)
    wide = {
        "input_ids": torch.nn.functional.pad(short["input_ids"], (4, 0), value=1),
        "attention_mask": torch.nn.functional.pad(short["attention_mask"], (4, 0)),
    }
    if name == "gpt2":
        short, wide = counted(short), counted(wide)
    assert_same(calibrate(model, [short]), calibrate(model, [wide]), rtol=1e-7)


def test_a_position_behind_the_table_is_named() -> None:
    model = named("gpt2")
    most = longest(model)
    assert most is not None
    batch = counted(tiny.batch())
    batch["position_ids"][0, 1:] += most
    with pytest.raises(
        ValueError, match=r"the position \d+ in its `position_ids`.*positions, from 0"
    ):
        calibrate(model, [batch])


def test_a_table_of_positions_that_grows_has_no_end() -> None:
    family = tiny.named("bart")
    family = dataclasses.replace(family, stem="FSMT", headed="FSMTForConditionalGeneration")
    model = family.build(src_vocab_size=tiny.VOCABULARY, tgt_vocab_size=tiny.VOCABULARY)
    most = longest(model)
    assert most is not None
    batch = tiny.batch(length=most + 1, padded=False)
    calibrate(model, [{**batch, "decoder_input_ids": tiny.batch()["input_ids"]}])


def test_rotary_positions_have_no_end() -> None:
    model = named("llama-gqa")
    most = longest(model)
    assert most is not None
    calibrate(model, [tiny.batch(length=most + 1, padded=False)])


def test_several_choices_per_example_are_refused_where_the_model_does_not_choose() -> None:
    model = tiny.BERT.build()
    batch = {k: v.expand(2, 3, 7) for k, v in tiny.batch().items()}
    kept = np.arange(12) % 2 == 0
    small = slice_heads(model, kept)
    for mask in (True, False):
        given = batch if mask else {"input_ids": batch["input_ids"]}
        with pytest.raises(ValueError, match="several choices per example"):
            calibrate(model, [given], fidelity=ClassLogits())
        with pytest.raises(ValueError, match="several choices per example"):
            refit(small, model, [given])
        with pytest.raises(ValueError, match="several choices per example"):
            slice_heads(model, kept, batch=given)
    family = dataclasses.replace(tiny.BERT, headed="BertForMultipleChoice")
    with pytest.raises(ValueError, match="a BertForMultipleChoice reads several choices"):
        calibrate(family.build(), [tiny.batch()])
