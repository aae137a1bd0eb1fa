"""Tiny bare models of architectures whose attention has something of its own."""

from __future__ import annotations

from typing import Any

import tiny_models as tiny
import torch
from torch import nn

_MOE: dict[str, Any] = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
_WINDOWS: dict[str, Any] = {"window_size": 2, "depths": [2, 1]}
_BLOCKS = {"block_size": 4, "num_random_blocks": 2, "max_position_embeddings": 64}

FIELDS: dict[str, dict[str, Any]] = {
    "Albert": {"embedding_size": 16},
    "Bart": {},
    "Beit": {"use_relative_position_bias": True},
    "BigBird": {**_BLOCKS, "sep_token_id": 1},
    "BigBirdPegasus": _BLOCKS,
    "Bloom": {},
    "CodeGen": {"n_head": 8, "rotary_dim": 2},
    "DebertaV2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "DeepseekV3": {  # latent attention
        "q_lora_rank": 12,
        "kv_lora_rank": 10,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 6,
        "v_head_dim": 8,
        "first_k_dense_replace": 3,
    },
    "Falcon": {"num_kv_heads": 2, "new_decoder_architecture": True},
    "GPT2": {},
    "GPTBigCode": {},
    "GptOss": {"num_attention_heads": 8, **_MOE},
    "LongT5": {"local_radius": 3, "global_block_size": 3, "decoder_start_token_id": 0},
    "Longformer": {"attention_window": 4},
    "ModernBert": {},
    "Olmo2": {},
    "ProphetNet": {
        "num_encoder_attention_heads": 4,
        "num_decoder_attention_heads": 4,
        "num_encoder_layers": 2,
    },
    "Phi3": {"num_attention_heads": 8},
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "Qwen3Next": {  # queries and their gates in one projection
        "num_attention_heads": 8,
        "head_dim": 8,
        "layer_types": ["full_attention"] * 3,
        "shared_expert_intermediate_size": 8,
        **_MOE,
    },
    "Swin": {"embed_dim": 12, "num_heads": [3, 3], **_WINDOWS},
    "Swin2SR": {"num_heads": [4, 4], **_WINDOWS, "patch_size": 1},
    "Swinv2": {"embed_dim": 24, "num_heads": [4, 4], **_WINDOWS},
    "T5": {},
}
"""What a configuration needs beside the usual sizes, by the stem of its class names."""


def configured(name: str, **fields: Any) -> Any:
    """The configuration of such a model; keywords override it."""
    return tiny.configure(f"{name}Config", **{**FIELDS[name], **fields})


def built(name: str, **fields: Any) -> nn.Module:
    """A bare model in evaluation mode with random weights; keywords override its configuration."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = tiny.of_transformers(f"{name}Model")(configured(name, **fields))
        tiny.stir(model)
    return model.eval()
