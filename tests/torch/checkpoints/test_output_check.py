"""The numbers saved beside a model: what cannot be compared is told, and a failure is no pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import uneven
from torch import Tensor, nn
from transformers.models.bert import modeling_bert

from cahp_opt.files.records import RecordError
from cahp_opt.torch.blocks.finder import find_attention
from cahp_opt.torch.checkpoints.checkpoint import from_pretrained, save_pretrained
from cahp_opt.torch.checkpoints.output_check import CHECK_FILE
from cahp_opt.torch.slicing.slicing import slice_heads


def saved(model: nn.Module, folder: Path, batch: dict[str, Tensor] | None = None) -> Path:
    small = slice_heads(model, uneven(find_attention(model).space), batch=batch)
    save_pretrained(small, folder / "small")
    return folder / "small"


@pytest.mark.parametrize("error", [RuntimeError, TypeError, IndexError])
def test_a_model_that_loads_and_cannot_run_is_refused(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tiny.BERT.build(), tmp_path)

    def broken(*args: object, **kwargs: object) -> None:
        raise error("shape '[2, 8, 32]' is invalid")

    monkeypatch.setattr(modeling_bert.BertSelfAttention, "forward", broken)
    with pytest.raises(RecordError, match=r"ran when it was saved .* cannot .*is invalid"):
        from_pretrained(folder)


def test_a_model_that_computes_nan_once_loaded_is_refused(tmp_path: Path) -> None:
    folder = saved(tiny.BERT.build(), tmp_path)
    (path,) = folder.glob("*.safetensors")
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("layer.2.output.dense.bias"))
    weights[name][0] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(RecordError, match="whose outputs, loaded again, differ"):
        from_pretrained(folder)


def test_inputs_made_up_that_overflow_in_another_precision_say_nothing(tmp_path: Path) -> None:
    model: Any = tiny.BERT.build()
    with torch.no_grad():
        model.bert.embeddings.LayerNorm.weight *= 1e8
    folder = saved(model, tmp_path)
    assert from_pretrained(folder, dtype=torch.float16).dtype is torch.float16


def test_a_model_that_takes_something_else_says_so_in_its_folder(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {name: tiny.SIZES[name] for name in ("hidden_size", "image_size")}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40}
    config = transformers.VideoMAEConfig(**sizes, patch_size=4, num_frames=4)
    batch = {"pixel_values": torch.randn(1, 4, 3, tiny.PIXELS, tiny.PIXELS)}
    model: Any = transformers.VideoMAEModel(config)
    folder = saved(model.eval(), tmp_path, batch)
    record = json.loads((folder / CHECK_FILE).read_text())
    assert record["numbers"] == [] and "unpack" in record["why"]
    from_pretrained(folder)


class _Opaque(torch.autograd.Function):
    """The identity, without a derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError("the derivative is not implemented")


def _make_opaque(module: nn.Module, args: object, output: Tensor) -> Any:
    function: Any = _Opaque
    return function.apply(output)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_a_check_by_differentiation_that_cannot_be_made_is_told(dtype: torch.dtype) -> None:
    """In half precision the other check is coarse, so that it matters."""
    model: Any = tiny.BERT.build(bare=True).to(dtype)
    query = model.encoder.layer[0].attention.self.query
    query.register_forward_hook(_make_opaque)
    kept = uneven(find_attention(model).space)
    if dtype is torch.float32:
        slice_heads(model, kept)
    else:
        with pytest.warns(UserWarning, match=r"cannot be differentiated \(the derivative is not"):
            slice_heads(model, kept)
