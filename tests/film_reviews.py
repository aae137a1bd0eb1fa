"""A tiny classifier and a few labelled texts for it, on disk, as the benchmarks read them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import transformers

WORDS = ["good", "bad", "film", "plot", "very", "not", "the", "a", "of", "never", "dull", "bright"]
HEADS, LAYERS, NEURONS = 4, 2, 24


def write_reviews(folder: Path) -> None:
    """Tables with two classes."""
    draw = random.Random(0)
    for part, count in (("train", 40), ("dev", 9), ("test", 11)):
        lines = ["label\ttext"]
        for i in range(count):
            words = [("bad", "good")[i % 2], *draw.choices(WORDS[2:], k=3 + i % 4)]
            lines.append(f"{i % 2}\t{' '.join(words)}")
        (folder / f"{part}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_critic(folder: Path) -> None:
    """The classifier, with random weights, and its tokenizer."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    torch.manual_seed(0)
    configure: Any = transformers.BertConfig
    config = configure(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=NEURONS,
        max_position_embeddings=64,
        initializer_range=0.5,
        num_labels=2,
    )
    model: Any = transformers.BertForSequenceClassification(config)
    model.save_pretrained(folder)
    tokenizer: Any = transformers.BertTokenizer
    tokenizer.from_pretrained(folder).save_pretrained(folder)
