"""Random inputs for any model, made from the signature of its forward and from its configuration."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from shrinking import FIRST_TEXT, LAST_TEXT, sub_configurations
from torch import Tensor, nn

EXAMPLES = 2
TOKENS, SHORT, LONG = 16, 3, 72
"""Lengths of texts: the usual one, and others, because some models go another way for short or long ones."""


@dataclass
class Wish:
    """What is known about the inputs wanted.

    Args:
        model: whom they are for.
        seed: of the numbers.
        padded: whether the attention mask leaves tokens out.
        variant: which of several possible shapes is tried.
        placeholders: how many tokens stand for every picture, sound or film, by its token id.
        tokens: of every text, beside those.
    """

    model: nn.Module
    seed: int
    padded: bool
    variant: int = 0
    placeholders: dict[int, int] = field(default_factory=dict)
    tokens: int = TOKENS

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(self.seed)

    @property
    def config(self) -> Any:
        return self.model.config

    def get(self, *names: str, default: Any = None) -> Any:
        """The first of these fields that the configuration or one below it has."""
        for config in sub_configurations(self.config):
            for name in names:
                value = getattr(config, name, None)
                if value is not None:
                    return value
        return default

    def number(self, *names: str, default: int) -> int:
        value = self.get(*names, default=default)
        while isinstance(value, (list, tuple)):
            value = value[0]
        return int(value)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random)

    def ids(self, length: int) -> Tensor:
        most = min(self.number("vocab_size", "text_vocab_size", default=LAST_TEXT), LAST_TEXT)
        low = min(FIRST_TEXT, most - 1)
        return torch.randint(low, most, (EXAMPLES, length), generator=self.random)

    @property
    def length(self) -> int:
        return self.tokens + sum(self.placeholders.values())

    @property
    def targets(self) -> int:
        """How many tokens a decoder gets."""
        return max(2, self.tokens * 3 // 8)

    @property
    def width(self) -> int:
        return self.number("hidden_size", "d_model", "n_embd", "embed_dim", default=64)


def _input_ids(w: Wish) -> Tensor:
    ids = w.ids(w.tokens)
    for token, count in w.placeholders.items():
        ids = torch.cat([ids[:, :2], torch.full((EXAMPLES, count), token), ids[:, 2:]], dim=1)
    return ids


def _mask(w: Wish) -> Tensor:
    mask = torch.ones(EXAMPLES, w.length, dtype=torch.long)
    if w.padded:
        mask[1, -min(2 + w.seed % 3, w.length - 1) :] = 0
    return mask


def _size(w: Wish) -> tuple[int, int]:
    value = w.get("image_size", "img_size", "input_size", default=32)
    if isinstance(value, dict):
        value = (value.get("height", 32), value.get("width", 32))
    if isinstance(value, (list, tuple)):
        return int(value[0]), int(value[-1])
    return int(value), int(value)


def _pixels(w: Wish) -> Tensor:
    channels = w.number("num_channels", "in_channels", "in_chans", "channels", default=3)
    height, wide = _size(w)
    frames = w.number("num_frames", "frames_per_clip", "temporal_patch_size", default=4)
    patch = w.number("patch_size", default=8)
    temporal = w.number("temporal_patch_size", default=1)
    tiles = w.number("max_num_tiles", default=2)
    shapes = [
        (EXAMPLES, channels, height, wide),
        (EXAMPLES, frames, channels, height, wide),
        (EXAMPLES, channels, frames, height, wide),
        (EXAMPLES, 1, channels, height, wide),
        (EXAMPLES * 16, channels * temporal * patch * patch),
        (EXAMPLES, 16, channels * temporal * patch * patch),
        (EXAMPLES, 1, tiles, channels, height, wide),
        (EXAMPLES * 16, channels, patch, patch),
        (EXAMPLES, 2, channels, height, wide),
    ]
    if "image_grid_thw" in _signature(w.model):
        shapes = [shapes[4], *shapes[:4], *shapes[5:]]
    return w.normal(*shapes[w.variant % len(shapes)])


def _features(w: Wish) -> Tensor:
    bins = w.number(
        "num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel", "feature_size",
        "input_dim", "n_mels", "input_size", "num_mels", default=80,
    )  # fmt: skip
    frames = 2 * w.number("max_source_positions", default=32)
    shapes = [(EXAMPLES, bins, frames), (EXAMPLES, 64, bins), (EXAMPLES, 1, 64, bins)]
    return w.normal(*shapes[w.variant % len(shapes)])


def _sound(w: Wish) -> Tensor:
    bins = w.number("num_mel_bins", default=80)
    shapes = [
        (EXAMPLES, 4000),
        (EXAMPLES, 1, 4000),
        (EXAMPLES, w.number("max_length", default=64), bins),
        (EXAMPLES, 64, bins),
    ]
    return w.normal(*shapes[w.variant % len(shapes)])


def _boxes(w: Wish) -> Tensor:
    corner = torch.randint(0, 40, (EXAMPLES, w.length, 2), generator=w.random)
    extent = torch.randint(1, 40, (EXAMPLES, w.length, 2), generator=w.random)
    return torch.cat([corner, corner + extent], dim=-1)


def _hidden(w: Wish) -> Tensor:
    channels = w.number("in_channels", "num_channels", "in_chans", default=3)
    patch = w.number("patch_size", default=8)
    flat = channels * w.number("temporal_patch_size", default=1) * patch * patch
    shapes = [(EXAMPLES, w.length, w.width), (EXAMPLES * 16, flat), (EXAMPLES, w.width, 4, 4)]
    if "grid_thw" in _signature(w.model):
        shapes = [shapes[1], shapes[0], shapes[2]]
    return w.normal(*shapes[w.variant % len(shapes)])


def _grid(w: Wish) -> Tensor:
    return torch.tensor([[1, 4, 4]] * EXAMPLES)


def _squares(w: Wish) -> Tensor:
    return torch.tensor([[4, 4]] * EXAMPLES)


def _past(w: Wish) -> Tensor:
    lags = w.get("lags_sequence", default=[0])
    length = w.number("context_length", "prediction_length", default=16) + max(lags)
    channels = w.number("num_input_channels", "input_size", default=1)
    shape = (EXAMPLES, length) if channels == 1 and lags != [0] else (EXAMPLES, length, channels)
    return w.normal(*shape)


def _time_features(w: Wish) -> Tensor:
    return w.normal(EXAMPLES, _past(w).shape[1], w.number("num_time_features", default=1))


def _future(w: Wish) -> Tensor:
    return w.normal(EXAMPLES, w.number("prediction_length", default=4))


def _patches(w: Wish) -> int:
    height, wide = _size(w)
    patch = w.number("patch_size", default=8)
    return (height // patch) * (wide // patch)


MAKERS: dict[str, Callable[[Wish], Any]] = {
    "input_ids": _input_ids,
    "attention_mask": _mask,
    "decoder_input_ids": lambda w: w.ids(w.targets),
    "pixel_values": _pixels,
    "pixel_values_videos": _pixels,
    "images": _pixels,
    "image": _pixels,
    "flattened_patches": lambda w: w.normal(
        EXAMPLES, w.tokens, w.number("patch_embed_hidden_size", default=768) + 2
    ),
    "image_pixels": _pixels,
    "input_features": _features,
    "input_values": _sound,
    "bbox": _boxes,
    "inputs_embeds": lambda w: w.normal(EXAMPLES, w.length, w.width),
    "hidden_states": _hidden,
    "encoder_hidden_states": lambda w: w.normal(EXAMPLES, w.length, w.width),
    "query_embeds": lambda w: w.normal(EXAMPLES, 8, w.width),
    "embedded_text": lambda w: w.normal(EXAMPLES, w.length, w.width),
    "grid_thw": _grid,
    "image_grid_thw": _grid,
    "noise": lambda w: w.normal(EXAMPLES, _patches(w)),
    "past_values": _past,
    "past_observed_mask": lambda w: torch.ones_like(_past(w)),
    "past_time_features": _time_features,
    "future_values": _future,
    "future_time_features": lambda w: w.normal(
        EXAMPLES, _future(w).shape[1], w.number("num_time_features", default=1)
    ),
    "input_points": lambda w: 8 * w.normal(EXAMPLES, 1, 2, 2).abs(),
    "bool_masked_pos": lambda w: torch.arange(_patches(w)).expand(EXAMPLES, -1) % 3 == 0,
    "token_type_ids": lambda w: torch.zeros(EXAMPLES, w.length, dtype=torch.long),
    "pixel_mask": lambda w: torch.ones(EXAMPLES, *_size(w), dtype=torch.long),
    "position_ids": lambda w: torch.arange(w.length).expand(EXAMPLES, -1),
    "visual_feats": lambda w: w.normal(EXAMPLES, 4, w.number("visual_feat_dim", default=2048)),
    "visual_pos": lambda w: w.normal(EXAMPLES, 4, w.number("visual_pos_dim", default=4)).abs(),
    "visual_embeds": lambda w: w.normal(EXAMPLES, 4, w.number("visual_embedding_dim", default=64)),
    "mm_token_type_ids": lambda w: _is_placeholder(w).long(),
    "input_features_mask": lambda w: torch.ones(EXAMPLES, _features(w).shape[-1]).long(),
    "feature_attention_mask": lambda w: torch.ones(EXAMPLES, _features(w).shape[-1]).long(),
    "high_res_pixel_values": lambda w: w.normal(EXAMPLES, 3, *_size(w)),
    "states": lambda w: w.normal(EXAMPLES, w.tokens, w.number("state_dim", default=17)),
    "actions": lambda w: w.normal(EXAMPLES, w.tokens, w.number("act_dim", default=4)),
    "rewards": lambda w: w.normal(EXAMPLES, w.tokens, 1),
    "returns_to_go": lambda w: w.normal(EXAMPLES, w.tokens, 1),
    "timesteps": lambda w: torch.arange(w.tokens).expand(EXAMPLES, -1),
    "timestep": lambda w: torch.rand(EXAMPLES, generator=w.random),
    "image_sizes": lambda w: torch.tensor([_size(w)] * EXAMPLES),
    "qformer_input_ids": lambda w: w.ids(w.targets),
    "pixel_position_ids": lambda w: torch.stack(
        torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"), dim=-1
    ).view(1, 16, 2).expand(EXAMPLES, -1, -1),
    "pixel_attention_mask": lambda w: torch.ones(EXAMPLES, 16, dtype=torch.long),
    "spatial_shapes": _squares,
    "target_sizes": _squares,
    "merge_sizes": lambda w: torch.ones(EXAMPLES, dtype=torch.long),
    "past_values_padding": lambda w: torch.zeros(_past(w).shape[:2], dtype=torch.long),
    "freq": lambda w: torch.zeros(EXAMPLES, 1, dtype=torch.long),
    "aspect_ratio_ids": lambda w: torch.ones(EXAMPLES, 1, dtype=torch.long),
    "aspect_ratio_mask": lambda w: torch.ones(
        EXAMPLES, 1, w.number("max_num_tiles", default=2), dtype=torch.long
    ),
    "mask": lambda w: torch.ones(EXAMPLES, 64, dtype=torch.bool),
    "action_embeds": lambda w: w.normal(EXAMPLES, 4, w.width),
    "audio_codes": lambda w: torch.randint(
        0, 16, (EXAMPLES, w.number("num_codebooks", "num_quantizers", default=4), 8), generator=w.random
    ),
}  # fmt: skip
"""How every argument of a forward that is understood is made."""

_WANTED = (
    "input_ids",
    "attention_mask",
    "decoder_input_ids",
    "pixel_values",
    "input_features",
    "input_values",
    "bbox",
    "image_grid_thw",
    "noise",
    "past_values",
    "past_observed_mask",
    "past_time_features",
    "future_values",
    "future_time_features",
    "visual_feats",
    "visual_pos",
    "mm_token_type_ids",
    "image_sizes",
    "pixel_attention_mask",
    "spatial_shapes",
    "input_features_mask",
    "feature_attention_mask",
    "high_res_pixel_values",
    "states",
    "actions",
    "rewards",
    "returns_to_go",
    "timesteps",
)
"""Optional arguments that are given where there are such, so that every tower of a model runs."""


def _is_placeholder(w: Wish) -> Tensor:
    ids = _input_ids(w)
    found = torch.zeros_like(ids, dtype=torch.bool)
    for token in w.placeholders:
        found |= ids == token
    return found


def _signature(model: nn.Module) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(model.forward).parameters)


def arguments(model: nn.Module) -> Iterator[tuple[str, ...]]:
    """Names of arguments to try, the most complete set first."""
    parameters = _signature(model)
    required = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    unknown = [name for name in required if name not in MAKERS]
    if unknown:
        raise NotImplementedError(f"its forward requires {', '.join(unknown)}")
    main = getattr(model, "main_input_name", "input_ids")
    wanted = [name for name in _WANTED if name in parameters]
    crossed = [n for n in ("encoder_hidden_states",) if n in parameters]
    rich = list(dict.fromkeys([*required, *wanted]))
    poor = list(dict.fromkeys([*required, *([main] if main in parameters else [])]))
    if "input_ids" in poor and "attention_mask" in parameters:
        poor.append("attention_mask")
    encoder_decoder = [*poor, *(["decoder_input_ids"] if "decoder_input_ids" in parameters else [])]
    embeds = [n for n in ("inputs_embeds", "attention_mask") if n in parameters]
    for names in ([*rich, *crossed], rich, encoder_decoder, poor, [*poor, *crossed], embeds):
        if main != "input_ids" and "input_ids" not in names:
            names = [n for n in names if n != "attention_mask"]
        if names:
            yield tuple(n for n in names if n in MAKERS)


def make(wish: Wish, names: tuple[str, ...]) -> dict[str, Any]:
    """The inputs with these names; the same wish makes the same numbers."""
    wish.random.manual_seed(wish.seed)
    return {name: MAKERS[name](wish) for name in names}


def mentioned(model: nn.Module, message: str) -> list[str]:
    """Arguments of the forward that an error message names and that can be made."""
    words = set(re.findall(r"\w+", message))
    return [name for name in _signature(model) if name in words and name in MAKERS]


_TOKEN_OF = {
    "image": (
        "image_token_id",
        "image_token_index",
        "img_context_token_id",
        "image_context_token_id",
    ),
    "audio": ("audio_token_id", "audio_token_index"),
}


def placeholders(model: nn.Module, inputs: dict[str, Any]) -> dict[int, int]:
    """How many tokens of the text stand for each picture or sound: asked of the model itself."""
    found: dict[int, int] = {}
    for kind, names in _TOKEN_OF.items():
        token = next(
            (t for n in names if isinstance(t := getattr(model.config, n, None), int)), None
        )
        method = next(
            (m for owner in (model, getattr(model, "model", None))
             if callable(m := getattr(owner, f"get_{kind}_features", None))),
            None,
        )  # fmt: skip
        if token is None or method is None:
            continue
        wanted = inspect.signature(method).parameters
        given = {k: v for k, v in inputs.items() if k in wanted and k != "attention_mask"}
        with torch.no_grad():
            output = method(**given)
        width = getattr(model.config.get_text_config(), "hidden_size", 64)
        found[token] = _rows(output, width) // EXAMPLES
    return found


def _rows(output: Any, width: int) -> int:
    pooled = getattr(output, "pooler_output", None)
    if pooled is None and hasattr(output, "last_hidden_state"):
        pooled = output.last_hidden_state
    value = output if pooled is None else pooled
    if isinstance(value, Tensor):
        return value.numel() // width
    return sum(_rows(v, width) for v in value if isinstance(v, (Tensor, list, tuple)))
