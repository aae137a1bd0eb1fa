"""Stock folders: what the stock loaders open, and what no configuration can state."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch
import transformers
from tiny_models import Family, outputs, sliced
from torch import nn

from cahp_opt.torch import ExportError, export_stock, find_prunable, slice_heads


def evenly(family: Family, units: int | None, groups: int | None, **build: Any) -> Any:
    """A model that kept as many units in every block of attention, and groups in every feed-forward part; all
    for None. Others in every block, and never the first ones alone."""
    prunable = find_prunable(family.build(**build))
    kept = np.zeros(prunable.space.n, dtype=np.bool_)
    rng = np.random.default_rng(0)
    for block, where in zip(prunable.space.blocks, prunable.space.slices, strict=True):
        count = (units if block.unit.of_attention else groups) or block.units
        kept[where.start + rng.permutation(block.units - 1)[: count - 1]] = True
        kept[where.stop - 1] = True
    return slice_heads(prunable, kept)


def test_the_configuration_names_the_class(tmp_path: Path) -> None:
    """Rather than the one that the model was loaded from."""
    small = evenly(tiny.BERT, None, 3)
    small.config.architectures = ["BertForMaskedLM"]
    export_stock(small, tmp_path / "stock")
    config = json.loads((tmp_path / "stock" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == [type(small).__name__]


@pytest.mark.parametrize(
    ("name", "units", "groups"),
    [
        ("llama-gqa", 2, 3),
        ("llama-mha", 4, None),
        ("mistral", 2, 2),
        ("qwen3", 1, 3),
        ("gemma3", 2, 3),
        ("bert", None, 3),
        ("gpt2", None, 5),
        ("t5", None, 3),
        ("bart", None, 2),
    ],
)
def test_the_stock_class_opens_it(name: str, units: int, groups: int, tmp_path: Path) -> None:
    family = tiny.named(name)
    small = evenly(family, units, groups)
    export_stock(small, tmp_path / "stock")
    config = json.loads((tmp_path / "stock" / "config.json").read_text(encoding="utf-8"))
    assert not [key for key in config if "cahp" in key] and "cahp" not in json.dumps(config)
    auto: Any = transformers.AutoModel
    if hasattr(small, "lm_head") and not small.config.is_encoder_decoder:
        auto = transformers.AutoModelForCausalLM
    opened = auto.from_pretrained(tmp_path / "stock")
    if auto is transformers.AutoModelForCausalLM:
        assert type(opened) is type(small)
        found, expected = (outputs(m, family.batch()) for m in (opened.eval(), small))
        assert found.keys() == expected.keys() and found
        assert all(torch.equal(found[key], expected[key]) for key in found)
    sizes = sum(p.numel() for p in small.parameters())
    assert sizes < sum(p.numel() for p in family.build().parameters())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: sliced(tiny.LLAMA_GQA, empty=None),
            "the layers differ: model.layers.2.self_attn has",
        ),
        (lambda: sliced(tiny.LLAMA_GQA, empty=1), "model.layers.1.self_attn kept nothing"),
        (lambda: evenly(tiny.BERT, 2, None), "derive the width of a head"),
        (lambda: evenly(tiny.GPT2, 2, None), "GPT2Config makes it"),
        (lambda: tiny.BERT.build(), "`model` was not pruned"),
        (lambda: nn.Linear(2, 2), "is not a transformers model"),
    ],
)
def test_what_no_configuration_states_is_refused(make: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=re.escape(words)):
        export_stock(make(), tmp_path / "stock")
    assert not any(tmp_path.iterdir())


def test_numbers_that_the_configuration_does_not_take_are_named(tmp_path: Path) -> None:
    """Llama's wants the hidden size to be a multiple of the heads, though nothing depends on it."""
    small = evenly(tiny.LLAMA_GQA, 3, None)
    try:
        tiny.LLAMA_GQA.config(num_attention_heads=6, num_key_value_heads=3, head_dim=4)
    except Exception:
        with pytest.raises(ExportError, match=r"LlamaConfig does not take .* heads \(6\)"):
            export_stock(small, tmp_path / "stock")
    else:
        export_stock(small, tmp_path / "stock")


def test_a_folder_that_computes_something_else_is_not_left(tmp_path: Path) -> None:
    """Here, because the model has a hook that no folder holds."""
    small = evenly(tiny.LLAMA_GQA, 2, 3)
    small.model.norm.register_forward_hook(lambda module, given, output: 2 * output)
    with pytest.raises(ExportError, match="gives other"):
        export_stock(small, tmp_path / "stock")
    assert not any(tmp_path.iterdir())
