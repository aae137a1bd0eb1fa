"""What stands in for the real model, its texts and the time where documents are run in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from cahp_opt import demo

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def byte_tokenizer() -> Any:
    """A tokenizer of any text: its bytes between [CLS] and [SEP]."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate([*_SPECIAL, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    make: Any = PreTrainedTokenizerFast
    names = ("pad_token", "unk_token", "cls_token", "sep_token")
    return make(
        tokenizer_object=tokenizer,
        model_max_length=128,
        model_input_names=["input_ids", "attention_mask"],
        **dict(zip(names, _SPECIAL, strict=True)),
    )


def save(folder: Path, family: tiny_models.Family, *, bare: bool = False, **fields: Any) -> Path:
    """A folder with a tiny model of this family that reads what :func:`byte_tokenizer` writes."""
    tokenizer = byte_tokenizer()
    usual = {"vocab_size": len(tokenizer), "max_position_embeddings": 128, "pad_token_id": 0}
    family.build(bare=bare, **{**usual, **fields}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def stand_in_for_the_demo(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The demonstration's model is a tiny encoder, whose vocabulary is about as large, of bytes."""
    model = save(folder / "encoder", tiny_models.BERT, bare=True, vocab_size=20_000)
    monkeypatch.setattr(demo, "demo_model", lambda: model)
    words = {word: number for number, word in enumerate(("of", "the", "words"))}
    drawn = demo.random_words
    monkeypatch.setattr(demo, "random_words", lambda _, *n, seed: drawn(words, *n, seed=seed))


def count_weights_as_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only linear layers move, each by the number of its weights.

    A tiny model takes its time for everything but its weights, and how long is chance.
    """
    now = [0.0]
    plain = nn.Linear.forward

    def counted(self: nn.Linear, x: Tensor) -> Tensor:
        now[0] += 1e-6 * self.weight.numel()
        return plain(self, x)

    monkeypatch.setattr(nn.Linear, "forward", counted)
    monkeypatch.setattr("cahp_opt.torch.latency.stopwatch.time.perf_counter", lambda: now[0])
