"""Models, texts and runs of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from cahp_opt.cli import main

WORDS = [f"w{i}" for i in range(tiny_models.VOCABULARY - 4)]


def make_tokenizer() -> Any:
    """Words ``w0``, ``w1``, ... between [CLS] and [SEP]."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    make: Any = PreTrainedTokenizerFast
    return make(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def save_model(folder: Path, *, bare: bool = True, seed: int = 0) -> Path:
    model: Any = tiny_models.BERT.build(bare=bare, seed=seed)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def sentences(n: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, size=rng.integers(3, 9))) for _ in range(n)]


SMALL = ["--held-out", "10", "--batch-size", "16", "--repeats", "1", "--threads", "1"]


QUICK = [*SMALL, "--latency-batch-size", "2", "--sequence-length", "8"]


def prune(model: Path, output: Path, *options: str | Path) -> int:
    sized = {"--workload", "--latency-table"} & set(options)
    quick = SMALL if sized else QUICK
    return main(["prune", str(model), "--output-dir", str(output), *quick, *map(str, options)])


def refused(
    capsys: pytest.CaptureFixture[str], code: int, *parts: str, run: Callable[[], int]
) -> None:
    """``run`` ends with this exit code and one sentence on stderr that has these parts."""
    capsys.readouterr()
    assert run() == code
    output = capsys.readouterr()
    told = [line for line in output.err.splitlines() if line.startswith("cahp: ")]
    assert len(told) == 1, output.err
    assert output.err.rstrip().endswith(told[0])  # nothing after it, no traceback
    assert "Traceback" not in output.err
    for part in parts:
        assert part in told[0]
