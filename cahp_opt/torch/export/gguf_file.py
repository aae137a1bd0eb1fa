"""A pruned Llama as one GGUF file for llama.cpp.

llama.cpp reads the numbers of heads, key/value heads and neurons layer by layer, but only its architecture
``deci`` builds layers from them. A layer without heads has none of their tensors, but for the first, which
states the width of a head for all. A layer without neurons it would skip altogether, attention included. So an
emptied first attention is written as one unit with a result of zeros, and an emptied feed-forward part as a few
neurons of zeros.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cahp_opt.arrays import Floats
from cahp_opt.files.records import PathLike
from cahp_opt.torch.blocks.blocks import AttentionBlock, FeedForwardBlock
from cahp_opt.torch.blocks.finder import find_prunable
from cahp_opt.torch.export.gguf_check import check_by_running
from cahp_opt.torch.export.gguf_vocabulary import Vocabulary, vocabulary_of
from cahp_opt.torch.export.refusals import ExportError, check_installed, package

CLASSES = ("LlamaForCausalLM", "MistralForCausalLM")
"""The classes that compute what llama.cpp computes for ``deci``."""

_ARCHITECTURE = "deci"
_ROPES = ("default", "linear", "llama3")
"""The rotary embeddings that a factor for every frequency describes."""

_SPARE = 32
"""Neurons of zeros in the place of an emptied feed-forward part: as many as quantised weights have in a group."""

_SAME = 1e-4
"""How far a frequency may be from the usual one, relative to it, and count as the usual one."""


@dataclass(frozen=True, eq=False)
class _Layer:
    """One layer: its module, and what is left of it.

    Args:
        module: the layer.
        heads: query heads that are written; 0 if the attention is empty.
        kv_heads: key/value heads; 0 likewise.
        neurons: neurons that are written.
        width: of a head.
    """

    module: Any
    heads: int
    kv_heads: int
    neurons: int
    width: int


def export_gguf(model: nn.Module, path: PathLike, *, tokenizer: Any, check: bool = True) -> None:
    """Write a Llama-like decoder, pruned or not, as a GGUF file, whole or not at all.

    The file is run by llama.cpp, and greedy tokens and their probabilities are compared with those of
    ``model``, and the ids of a few texts with those of ``tokenizer``. Weights keep their precision; quantise the file with llama.cpp's own tools.

    Args:
        model: a causal Llama or Mistral without biases; it is not changed.
        path: the file; one that is there is replaced.
        tokenizer: the model's tokenizer, which becomes a part of the file.
        check: whether to run the file; that needs the package ``xllamacpp`` and memory for a second model.

    Raises:
        ExportError: if llama.cpp cannot represent the model or its tokenizer, or computes something else, or a
            package is missing.
        OSError: if the file cannot be written.
    """
    layers = _layers(model)
    _check_plain(model, layers)
    factors = _rope_factors(model)
    stock: Any = model
    vocabulary = vocabulary_of(tokenizer, len(stock.get_input_embeddings().weight))
    gguf: Any = package("gguf", "gguf")
    if check:
        check_installed("xllamacpp", "gguf")
    target = Path(path).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        writer = gguf.GGUFWriter(name, _ARCHITECTURE)
        _write_facts(writer, stock.config, layers)
        _write_vocabulary(writer, vocabulary, getattr(tokenizer, "chat_template", None))
        for tensor, weight in _tensors(stock, layers):
            _write_tensor(gguf, writer, tensor, weight)
        if factors is not None:
            writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        if check:
            check_by_running(model, tokenizer, Path(name))
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)  # temporary files are private; this is an ordinary one
        Path(name).replace(target)
    finally:
        Path(name).unlink(missing_ok=True)


def _layers(model: nn.Module) -> list[_Layer]:
    """What is left of every layer; refuses models of other classes."""
    name = type(model).__name__
    if name not in CLASSES:
        raise ExportError(
            f"`model` is a {name}, and llama.cpp runs layers of different sizes only for models that compute as "
            f"Llama does: {' and '.join(CLASSES)}."
        )
    stock: Any = model
    blocks = {id(block.out): block for block in find_prunable(model)}
    found: list[_Layer] = []
    for number, module in enumerate(stock.model.layers):
        attention = blocks.get(id(module.self_attn.o_proj))
        part = blocks.get(id(module.mlp.down_proj))
        if not (isinstance(attention, AttentionBlock) and isinstance(part, FeedForwardBlock)):
            raise ExportError(f"layer {number} of {name} has another form than Llama's.")
        # Without heads in the first layer, llama.cpp takes those of all others for empty: it gets zeros.
        empty = attention.ghost and number > 0
        counts = (0, 0) if empty else (attention.heads, attention.kv_heads)
        width = min(part.width, _SPARE) if part.ghost else part.width
        found.append(_Layer(module, *counts, width, attention.head_dim))
    return found


def _check_plain(model: nn.Module, layers: list[_Layer]) -> None:
    """Refuse what ``deci`` does not compute."""
    config: Any = model.config
    if config.hidden_act != "silu":
        raise ExportError(
            f"`model` has the activation {config.hidden_act!r}, and llama.cpp computes 'silu'."
        )
    for number, layer in enumerate(layers):
        biased = [name for name, _ in layer.module.named_parameters() if name.endswith("bias")]
        if biased:
            raise ExportError(
                f"layer {number} has a bias, {biased[0]}, and llama.cpp has no place for it in layers of "
                "different sizes."
            )
        if getattr(layer.module.self_attn, "scaling", layer.width**-0.5) != layer.width**-0.5:
            raise ExportError(
                f"layer {number} scales attention in a way of its own, which llama.cpp does not."
            )
        if layer.heads and layer.heads % layer.kv_heads:
            raise ExportError(
                f"layer {number} has {layer.heads} query heads on {layer.kv_heads} key/value heads, and llama.cpp "
                "needs as many on each."
            )
    dtypes = {p.dtype for p in model.parameters()}
    if not dtypes <= set(_TYPES):
        raise ExportError(
            f"`model` has weights of {', '.join(map(str, dtypes))}; load it in float32, float16 or bfloat16."
        )


def _rope_factors(model: Any) -> Floats | None:
    """By how much every frequency of the rotary embedding is divided, ``[head_dim / 2]``; None if by nothing."""
    rotary, config = model.model.rotary_emb, model.config
    kind = getattr(rotary, "rope_type", "default")
    if kind not in _ROPES or float(getattr(rotary, "attention_scaling", 1.0)) != 1.0:
        raise ExportError(
            f"`model` has rotary embeddings of the kind {kind!r}, and known are {', '.join(_ROPES)}."
        )
    frequencies: Floats = rotary.inv_freq.detach().cpu().double().numpy()
    width = 2 * len(frequencies)
    if width != model.model.layers[0].self_attn.head_dim:
        raise ExportError(
            f"`model` turns {width} of {model.model.layers[0].self_attn.head_dim} numbers of a head, and llama.cpp "
            "turns all of them in layers of different sizes."
        )
    usual = _theta(config) ** -(np.arange(0, width, 2) / width)
    factors: Floats = usual / frequencies
    return None if bool(np.all(np.abs(factors - 1) < _SAME)) else factors


def _theta(config: Any) -> float:
    """The base of the rotary embedding, where releases of transformers put it."""
    told: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    return float(told.get("rope_theta") or config.rope_theta)


def _write_facts(writer: Any, config: Any, layers: list[_Layer]) -> None:
    window: object = getattr(config, "sliding_window", None)
    length: int = config.max_position_embeddings
    width = layers[0].width
    writer.add_name(str(getattr(config, "_name_or_path", "") or "pruned"))
    writer.add_vocab_size(config.vocab_size)
    # Up to the window, attention within it is all attention; llama.cpp has no window here.
    writer.add_context_length(min(length, window) if isinstance(window, int) else length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(layers))
    writer.add_feed_forward_length([layer.neurons for layer in layers])
    writer.add_head_count([layer.heads for layer in layers])
    writer.add_head_count_kv([layer.kv_heads for layer in layers])
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(_theta(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _write_vocabulary(writer: Any, vocabulary: Vocabulary, chat_template: object) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types([int(kind) for kind in vocabulary.kinds])
    if vocabulary.merges:
        writer.add_token_merges(list(vocabulary.merges))
    if vocabulary.scores:
        writer.add_token_scores(list(vocabulary.scores))
    for name, number in vocabulary.special.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_space_prefix(vocabulary.adds_space)
    if isinstance(chat_template, str):
        writer.add_chat_template(chat_template)


def _tensors(model: Any, layers: list[_Layer]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the file by its name in there."""
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    yield "token_embd.weight", table
    yield "output_norm.weight", model.model.norm.weight
    if head is not table:
        yield "output.weight", head
    for number, layer in enumerate(layers):
        attention, mlp, place = layer.module.self_attn, layer.module.mlp, f"blk.{number}"
        if layer.heads:
            yield f"{place}.attn_norm.weight", layer.module.input_layernorm.weight
            yield f"{place}.attn_q.weight", _turned(attention.q_proj.weight, layer.heads)
            yield f"{place}.attn_k.weight", _turned(attention.k_proj.weight, layer.kv_heads)
            yield f"{place}.attn_v.weight", attention.v_proj.weight
            yield f"{place}.attn_output.weight", attention.o_proj.weight
        yield f"{place}.ffn_norm.weight", layer.module.post_attention_layernorm.weight
        yield f"{place}.ffn_gate.weight", mlp.gate_proj.weight[: layer.neurons]
        yield f"{place}.ffn_up.weight", mlp.up_proj.weight[: layer.neurons]
        yield f"{place}.ffn_down.weight", mlp.down_proj.weight[:, : layer.neurons]


def _turned(weight: Tensor, heads: int) -> Tensor:
    """Query or key rows in the order in which llama.cpp turns them: pairs side by side rather than half a head
    apart."""
    rows, hidden = weight.shape
    return weight.view(heads, 2, rows // heads // 2, hidden).transpose(1, 2).reshape(rows, hidden)


_TYPES: Mapping[torch.dtype, str] = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


def _write_tensor(gguf: Any, writer: Any, name: str, weight: Tensor) -> None:
    """Matrices in the precision that they have, vectors in single precision, which llama.cpp wants."""
    kind = getattr(gguf.GGMLQuantizationType, _TYPES[weight.dtype] if weight.ndim > 1 else "F32")
    numbers = weight.detach().cpu().float().contiguous().numpy()
    writer.add_tensor(name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
