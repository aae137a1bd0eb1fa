"""Tiny bare models of architectures whose attention has something of its own."""

from __future__ import annotations

from typing import Any

import tiny_models as tiny
import torch
import transformers
from torch import nn

_SMALL: dict[str, Any] = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": tiny.HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": tiny.HEADS,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_IMAGE: dict[str, Any] = {"image_size": 16, "patch_size": 4, "window_size": 2, "depths": [2, 1]}
_MOE: dict[str, Any] = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
_T5: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4}
_SPECIAL = {"sep_token_id": 1, "pad_token_id": 0}
_BART = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers",)}
_BART |= {f"{side}_attention_heads": 4 for side in ("encoder", "decoder")}
_BART |= {f"{side}_ffn_dim": 40 for side in ("encoder", "decoder")}

FIELDS: dict[str, dict[str, Any]] = {
    "Albert": {"embedding_size": 16},
    "Bart": {"d_model": 32, **_BART},
    "Beit": {"image_size": 16, "patch_size": 4, "use_relative_position_bias": True},
    "BigBird": {"block_size": 4, "num_random_blocks": 2, "max_position_embeddings": 64, **_SPECIAL},
    "BigBirdPegasus": {
        "d_model": 32,
        "block_size": 4,
        "num_random_blocks": 2,
        "max_position_embeddings": 64,
        **_BART,
    },
    "Bloom": {"n_head": 4, "n_layer": 2},
    "DebertaV2": {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "pooler_hidden_size": 32,
    },
    "DeepseekV3": {  # latent attention
        "num_key_value_heads": tiny.HEADS,
        "q_lora_rank": 12,
        "kv_lora_rank": 10,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 6,
        "v_head_dim": 8,
        "first_k_dense_replace": 2,
    },
    "Falcon": {"num_kv_heads": 2, "new_decoder_architecture": True},
    "GPT2": {},
    "GPTBigCode": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40},
    "GptOss": {"num_key_value_heads": 4, "num_attention_heads": 8, "head_dim": 4, **_MOE},
    "LongT5": {**_T5, "local_radius": 3, "global_block_size": 3, "decoder_start_token_id": 0},
    "ModernBert": {"cls_token_id": 0, "sep_token_id": 1, "pad_token_id": 2},
    "Olmo2": {},
    "Phi3": {"num_key_value_heads": 4, "num_attention_heads": 8, "pad_token_id": 0},
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "Qwen3Next": {  # queries and their gates in one projection
        "num_key_value_heads": 4,
        "num_attention_heads": 8,
        "head_dim": 8,
        "layer_types": ["full_attention"] * 2,
        "shared_expert_intermediate_size": 8,
        **_MOE,
    },
    "Swin": {"embed_dim": 12, "num_attention_heads": [3, 3], **_IMAGE},
    "Swin2SR": {"num_attention_heads": [4, 4], **_IMAGE, "patch_size": 1},
    "Swinv2": {"embed_dim": 24, "num_attention_heads": [4, 4], **_IMAGE},
    "T5": _T5,
}
"""What a configuration needs beside the common sizes, by the stem of its class names."""


def configured(name: str, **fields: Any) -> Any:
    """The configuration of such a model; keywords override it."""
    return getattr(transformers, f"{name}Config")(**{**_SMALL, **FIELDS[name], **fields})


def built(name: str, **fields: Any) -> nn.Module:
    """A bare model in evaluation mode with random weights; keywords override its configuration."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = getattr(transformers, f"{name}Model")(configured(name, **fields))
        tiny.stir(model)
    return model.eval()
