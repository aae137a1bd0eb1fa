"""ONNX graphs: equal to the model in PyTorch at sizes that they were not traced with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch
from command_line import make_tokenizer
from tiny_models import sliced
from torch import nn

from cahp_opt.torch import ExportError, export_onnx
from cahp_opt.torch.export.onnx_folder import _real
from cahp_opt.torch.export.onnx_inputs import example

# Tools announce the end of each other's interfaces; that is not ours to fail on.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

TEN = "bert distilbert mpnet modernbert vit bart gpt2 llama-gqa mistral qwen3"
CACHED = ("gpt2", "llama-gqa", "mistral", "qwen3")


def test_numbers_of_a_decoder_belong_to_its_own_tokens() -> None:
    """And not to those that the encoder reads, of which the second text has none at the end."""
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 3:] = 0
    inputs = {"attention_mask": mask, "decoder_input_ids": torch.ones(2, 4, dtype=torch.long)}
    logits, read = torch.ones(2, 4, 5), torch.ones(2, 9, 5)
    assert logits[_real("logits", logits, inputs)].numel() == logits.numel()
    assert read[_real("encoder_last_hidden_state", read, inputs)].shape == (12, 5)


@pytest.mark.slow
@pytest.mark.support("onnx")
@pytest.mark.parametrize("family", [tiny.named(name) for name in TEN.split()], ids=lambda f: f.name)
def test_graphs_equal_the_model(family: tiny.Family, tmp_path: Path) -> None:
    """Cut in heads and neurons, with emptied blocks of both kinds; decoders with their cache."""
    small = sliced(family, empty=0, neurons=True)
    told = export_onnx(small, tmp_path / "onnx")
    assert told.difference <= 1e-4 and (tmp_path / "onnx" / "model.onnx").is_file()
    assert told.cached is (family.name in CACHED), told.why_not
    assert told.cached is any(name.startswith("past_key_values.") for name in told.inputs)


@pytest.mark.slow
def test_a_graph_with_a_cache_generates(tmp_path: Path) -> None:
    """Greedy tokens, one by one from the cache, are those of the model."""
    runtime: Any = pytest.importorskip("onnxruntime")
    small = sliced(tiny.LLAMA_GQA, empty=1, neurons=True)
    told = export_onnx(small, tmp_path / "onnx")
    session = runtime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"))
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    options = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "pad_token_id": 0}
    expected = small.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, 5:].tolist()
    shapes = {entry.name: entry.shape for entry in session.get_inputs()}
    past = [n for n in told.inputs if n.startswith("past_key_values.")]
    state = {n: np.zeros((1, shapes[n][1], 0, shapes[n][3]), np.float32) for n in past}
    found, new, length = list[int](), ids.numpy(), 0
    for _ in range(8):
        length += new.shape[1]
        mask = np.ones((1, length), np.int64)
        logits, *entries = session.run(None, {"input_ids": new, "attention_mask": mask, **state})
        state = dict(zip(past, entries, strict=True))
        new = logits[:, -1:].argmax(-1)
        found.append(int(new[0, 0]))
    assert found == expected


@pytest.mark.slow
def test_a_graph_that_computes_something_else_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cahp_opt.torch.export import onnx_folder

    monkeypatch.setattr(onnx_folder, "_ALLOWED", 0.0)
    with pytest.raises(ExportError, match="the graph gives another"):
        export_onnx(sliced(tiny.BERT), tmp_path / "onnx")
    assert not any(tmp_path.iterdir())


def test_real_texts_are_encoded_as_the_model_takes_them() -> None:
    """Cut to its positions, and of one length for a tokenizer that does not pad, as of GPT-2."""
    model, tokenizer = tiny.GPT2.build(), make_tokenizer()
    padded = example(model, tokenizer)
    assert padded.keys() == {"input_ids", "attention_mask", "token_type_ids"}
    assert int((padded["attention_mask"] == 0).sum()) > 0
    tokenizer.pad_token = None
    found = example(tiny.GPT2.build(max_position_embeddings=6), tokenizer)
    assert found["input_ids"].shape == found["attention_mask"].shape == (2, 6)
    assert bool(found["attention_mask"].all())


def test_what_is_not_exported_is_refused_before_work(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="weights of torch.float16"):
        export_onnx(sliced(tiny.BERT).half(), tmp_path / "onnx")
    with pytest.raises(ExportError, match="not a transformers model"):
        export_onnx(nn.Linear(2, 2), tmp_path / "onnx")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        export_onnx(sliced(tiny.BERT), tmp_path / "mine")
    with pytest.raises(ValueError, match="at least two examples"):
        export_onnx(sliced(tiny.BERT), tmp_path / "onnx", batch=tiny.batch(size=1))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
