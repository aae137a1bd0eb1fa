"""A tiny configuration of any model type: sizes shrunk by the names of the fields.

Nothing here knows a model but :data:`OVERRIDES`, which says what the rules by name cannot guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """What the fields of a configuration are shrunk to.

    Args:
        width: of the hidden states.
        heads: query heads.
        kv_heads: key/value heads.
        head_dim: width of one head.
        layers: layers of every tower.
        image: height and width of images.
        patch: height and width of patches.
        narrow: whether widths and head counts are shrunk at all; if not, only depth, vocabulary,
            experts and pictures are, which leaves the divisibility of a configuration alone.
    """

    width: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    layers: int = 2
    image: int = 32
    patch: int = 8
    narrow: bool = True


VOCABULARY = 96
FIRST_TEXT, LAST_TEXT = 10, 60
"""Token ids between these mean nothing in particular; special ones are moved above."""

_USUAL = Sizes()
TRIALS: tuple[Sizes, ...] = (
    _USUAL,
    replace(_USUAL, kv_heads=4),
    replace(_USUAL, layers=4, kv_heads=4),
    replace(_USUAL, layers=8),
    replace(_USUAL, image=64, patch=16, kv_heads=4),
    replace(_USUAL, layers=12, kv_heads=4),
    replace(_USUAL, narrow=False),
    replace(_USUAL, narrow=False, layers=4, image=64, patch=16),
    replace(_USUAL, narrow=False, layers=4, image=224, patch=16),
    replace(_USUAL, width=128, head_dim=32, kv_heads=4),
)
"""What is tried in turn until a model builds and runs."""

# Which field means what, by its whole name; the first rule that matches counts.
_RULES: tuple[tuple[str, str], ...] = (
    (r"(qk_rope|qk_nope|rope)_head_dim", "half_head"),
    (
        r"(swa_)?v_head_dim|qk_head_dim|.*head_dim|d_kv|dim_head|d_head|attention_head_size|kv_channels",
        "head",
    ),
    (r".*(key_value|kv)_heads|n_head_kv|multi_query_group_num|num_query_groups", "kv_heads"),
    (
        r".*(attention|attn)_heads|n_heads?|num_heads|attention_heads|.*_(n|num)_heads|.*_nhead",
        "heads",
    ),
    (
        r"num_(hidden|encoder|decoder|entity|text|fusion)?_?layers|n_layers?|encoder_layers|decoder_layers"
        r"|depth|depths|.*num_(hidden_)?layers|.*_(num|n)_layers|.*_depth|(encoder|decoder)_depths?|.*_layers",
        "layers",
    ),
    (r".*vocab_size(_per_layer_input)?|.*_vocab", "vocabulary"),
    (r"(.*_)?codebook_size|num_embeddings", "codebook"),
    (r"rotary_dim", "head"),
    (
        r"(num|n)_(local_|routed_)?experts|moe_num_experts|num_moe_experts|.*num_experts|moe_nb_experts",
        "experts",
    ),
    (
        r"num_experts_per_tok(en)?|moe_topk|moe_k|moe_top_k|top_k_experts|.*experts_top_k|num_selected_experts",
        "top",
    ),
    (r"n_group|topk_group|num_expert_group", "one"),
    (
        r".*(max_(source_|target_)?positions?(_embeddings)?|n_positions|max_seq(uence)?_len(gth)?|n_ctx)",
        "positions",
    ),
    (r"sliding_window(_size)?|attention_window_size|local_window_size", "window"),
    (
        r".*(intermediate|ffn|mlp|inner)_(size|dim|hidden_size)|d_ff|n_inner|d_inner|.*ffn_dim|.*feedforward.*dim",
        "mlp",
    ),
    (r".*_lora_rank|.*lora_dim", "rank"),
    (r"index_topk", "window"),
    (
        r"(.*_)?(hidden_size|hidden_dim|d_model|embed_dim|embedding_size|embedding_dim|n_embd|emb_dim|hidden_channels"
        r"|projection_dim|out_dim|output_dim|hidden_sizes|embed_dims|proj_dim|projector_dim|channels_list|fpn_hidden_size)"
        r"|d_embed|dim|width|decoder_hidden|proj_size|lru_width|fusion_hidden_size",
        "width",
    ),
    (r"conv_dim|tdnn_dim|base_channels|latent_channels|hidden_size_per_layer_input", "width"),
    (r"adapter_(in|out)_dim|adapter_input_size", "width"),
    (r"num_conv_pos_embeddings", "window"),
    (r"(.*_)?image_size|img_size|.*resolution|.*image_sizes?", "image"),
    (r"(.*_)?patch_size", "patch"),
    (r"num_queries|num_query_tokens|query_length|num_latents|.*_n_latents", "window"),
)
_COMPILED = tuple((re.compile(pattern), kind) for pattern, kind in _RULES)

_LEFT_ALONE = re.compile(
    r"chunk_size_feed_forward|.*_token_id|.*_token_index|num_labels|out_features|out_indices|num_feat_extract_layers"
    r"|num_kv_shared_layers|first_k_dense_replace|num_dense_layers|num_shared_experts|n_shared_experts"
)

OVERRIDES: dict[str, dict[str, Any]] = {
    # Blocks so small that a long text of the sweep has enough of them, and the usual one has not.
    "big_bird": {"block_size": 4, "num_random_blocks": 2},
    "bigbird_pegasus": {"block_size": 4, "num_random_blocks": 2},
    "longt5": {"local_radius": 7, "global_block_size": 4},
    "bamba": {"attn_layer_indices": [1]},
    "autoformer": {"prediction_length": 4, "context_length": 8},
    "informer": {"prediction_length": 4, "context_length": 8},
    "time_series_transformer": {"prediction_length": 4, "context_length": 8},
    "bridgetower_vision_model": {"hidden_size": 128},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8}},
    "decision_transformer": {"n_head": 4},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "num_hidden_layers": 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "hunyuan_vl_text": {"head_dim": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "step3p5": {"sliding_window": 8},
    "step3p7": {"sliding_window": 8},
    "ministral": {"head_dim": 16},
    "nemotron": {"head_dim": 16},
    "cvt": {"depth": [1, 2, 3]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
}
"""By model type: fields that the rules by name get wrong."""


_BIASES = ({"use_relative_position_bias": True}, {"use_shared_relative_position_bias": True})
_CROSS = {"is_decoder": True, "add_cross_attention": True}

OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "beit": _BIASES,
    "bert": (_CROSS,),
    "big_bird": ({"attention_type": "original_full"},),
    "bigbird_pegasus": ({"attention_type": "original_full"},),
    "data2vec-vision": _BIASES,
    "deberta": ({"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},),
    "deberta-v2": ({"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},),
    "esm": ({"position_embedding_type": "rotary"},),
    "falcon": (
        {"multi_query": False},
        {"new_decoder_architecture": True},
        {"alibi": True, "multi_query": False},
    ),
    "gpt2": ({"add_cross_attention": True},),
    "gpt_bigcode": ({"multi_query": False},),
    "longt5": ({"encoder_attention_type": "transient-global"},),
    "roberta": (_CROSS,),
    "swin2sr": ({"num_heads": [2, 4]},),
    "swinv2": ({"num_heads": [2, 4]},),
    "wav2vec2-conformer": ({"position_embeddings_type": "rotary"},),
}
"""By model type: options with which the attention is another one, and which are no defaults."""


def shrunk(config: Any, sizes: Sizes, options: Mapping[str, Any] | None = None) -> Any:
    """A small configuration of the same class as ``config``, with all its sub-configurations.

    Args:
        config: the default configuration of a model type.
        sizes: what to shrink to.
        options: fields to set besides.
    """
    return type(config)(**{**_fields(config, sizes), **(options or {})})


def _fields(config: Any, sizes: Sizes) -> dict[str, Any]:
    from transformers import PretrainedConfig

    fields: dict[str, Any] = {}
    layers = getattr(config, "num_hidden_layers", None)
    layers = layers if isinstance(layers, int) else 0
    for name, value in vars(config).items():
        if name.startswith("_"):
            continue
        if isinstance(value, PretrainedConfig):
            fields[name] = _below(value, sizes)
        elif name in _TOKENS or re.fullmatch(r".*_token_(id|ids|index|indices)", name):
            fields[name] = _token(value)
        elif name in ("rope_scaling", "rope_parameters"):
            if isinstance(value, Mapping) and value:
                fields[name] = _rope(value, sizes, _share(config))
                if "mrope_section" in getattr(
                    config, "ignore_keys_at_rope_validation", ()
                ) and not any(isinstance(v, Mapping) for v in value.values()):
                    fields[name].setdefault(
                        "mrope_section", _section(1, 1, 1, sizes=sizes, share=_share(config))
                    )
        elif name == "head_dim" and value == getattr(config, "qk_rope_head_dim", None):
            fields[name] = _small("qk_rope_head_dim", value, sizes)
        else:
            if isinstance(value, (list, tuple)) and len(value) == layers > sizes.layers:
                fields[name] = value = value[: sizes.layers]
            small = _small(name, value, sizes)
            if small is not None and small != value:
                fields[name] = small
    fields = {k: v for k, v in fields.items() if v is not None}
    layers = fields.get("num_hidden_layers", layers)
    for name in ("layer_types", "layers_block_type", "mlp_layer_types"):
        kinds = vars(config).get(name)
        if isinstance(kinds, (list, tuple)) and isinstance(layers, int):
            fields[name] = _representative(list(kinds), layers)
    fields.update(OVERRIDES.get(config.model_type, {}))
    return fields


_BACKBONE = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 16, 32, 64],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}


def _below(config: Any, sizes: Sizes) -> dict[str, Any]:
    """A sub-configuration: what its parent gave it, shrunk."""
    if config.model_type == "timm_backbone":  # not in every environment, and without attention
        stages = range(1, 5)[-len(config.out_indices) :]
        return {**_BACKBONE, "out_features": [f"stage{i}" for i in stages]}
    usual = type(config)().to_dict()
    given = {
        k: v
        for k, v in config.to_dict().items()
        if v != usual.get(k) and not k.startswith("_") and not isinstance(v, dict)
    }
    return {**given, "model_type": config.model_type, **_fields(config, sizes)}


_TOKENS = ("img_context_token", "boi_token", "eoi_token")


def _representative(kinds: list[Any], layers: int) -> list[Any]:
    """``layers`` kinds of layer in which as many different ones as possible occur."""
    distinct = list(dict.fromkeys(kinds))
    # Attention first where there is no room for all: that is what the sweep is about.
    distinct.sort(key=lambda kind: "attention" not in str(kind) or "linear" in str(kind))
    chosen = (distinct + kinds)[:layers]
    order = {kind: i for i, kind in enumerate(dict.fromkeys(kinds))}
    return sorted(chosen, key=lambda kind: order[kind])


def _token(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_token(v) for v in value]
    if not isinstance(value, int) or isinstance(value, bool) or value < FIRST_TEXT:
        return value
    # The same special token keeps the same id in every sub-configuration.
    return LAST_TEXT + 1 + value % (VOCABULARY - LAST_TEXT - 2)


def _share(config: Any) -> float:
    """The part of a head that is rotated."""
    share = getattr(config, "partial_rotary_factor", None)
    rope = getattr(config, "rope_parameters", None)
    if share is None and isinstance(rope, Mapping):
        share = rope.get("partial_rotary_factor")
    return share if isinstance(share, (int, float)) else 1.0


def _rope(value: Mapping[str, Any], sizes: Sizes, share: float) -> dict[str, Any]:
    if any(isinstance(v, Mapping) for v in value.values()):
        return {
            k: _rope(v, sizes, share) if isinstance(v, Mapping) else v for k, v in value.items()
        }
    found = dict(value)
    section = found.get("mrope_section")
    if isinstance(section, (list, tuple)) and sizes.narrow:
        found["mrope_section"] = _section(*section, sizes=sizes, share=share)
    return found


def _section(*shares: int, sizes: Sizes, share: float) -> list[int]:
    """Parts of half of what is rotated of a head, in proportion to the shares."""
    half = int(sizes.head_dim * share) // 2
    parts = [max(s * half // sum(shares), 1) for s in shares]
    parts[-1] += half - sum(parts)
    return parts


def _small(name: str, value: Any, sizes: Sizes) -> Any:
    if isinstance(value, bool) or _LEFT_ALONE.fullmatch(name):
        return None
    kind = next((kind for pattern, kind in _COMPILED if pattern.fullmatch(name)), None)
    if kind is None:
        return None
    if not sizes.narrow and kind in (
        "half_head",
        "head",
        "kv_heads",
        "heads",
        "mlp",
        "rank",
        "width",
    ):
        return None
    if value is None and kind in ("experts", "top", "vocabulary"):
        return _number(kind, 1 << 30, sizes)
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, int) for v in value):
        each = [_number(kind, v, sizes) for v in value]
        return [1 for _ in each] if kind == "layers" and name.startswith("depth") else each
    return _number(kind, value, sizes) if isinstance(value, int) else None


def _number(kind: str, value: int, sizes: Sizes) -> int:
    small = {
        "half_head": sizes.head_dim // 2,
        "head": sizes.head_dim,
        "kv_heads": sizes.kv_heads,
        "heads": sizes.heads,
        "layers": sizes.layers,
        "vocabulary": VOCABULARY,
        "codebook": 64,
        "experts": 4,
        "top": 2,
        "one": 1,
        "positions": 128,
        "window": 8,
        "mlp": 48,
        "rank": 16,
        "width": sizes.width,
        "image": sizes.image,
        "patch": sizes.patch,
    }[kind]
    if kind == "heads" and value > 2:
        return small  # three heads do not divide a width that is a power of two
    return min(value, small)


def sub_configurations(config: Any) -> Iterator[Any]:
    """The configuration itself and all below it."""
    from transformers import PretrainedConfig

    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from sub_configurations(value)
