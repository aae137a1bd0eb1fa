"""The shapes of well-known models with random weights: their time does not depend on the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    ViTConfig,
)

from cahp_opt.costs.provenance import Phase
from cahp_opt.demo import DemoError, demo_model
from cahp_opt.space import Unit

BOTH = (Phase.PREFILL, Phase.DECODE)


@dataclass(frozen=True)
class Sizes:
    """How large the batches are.

    Args:
        examples: texts or images of a prefill batch.
        tokens: of every text.
        streams: texts that are decoded at once.
        context: tokens in their caches; fewer where a model has not so many positions.
        layers: of the Llama shapes, which are too wide to run all 32.
    """

    examples: int
    tokens: int
    streams: int
    context: int
    layers: int


SIZES = {
    "cuda": Sizes(examples=32, tokens=128, streams=8, context=1024, layers=4),
    "cpu": Sizes(examples=8, tokens=128, streams=8, context=1024, layers=1),
}
DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}


@dataclass(frozen=True)
class Shape:
    """A model to be timed.

    Args:
        config: what it is built from.
        phases: what it can do.
        unit: what is counted; None for what :func:`~cahp_opt.torch.find_attention` takes by default.
        load: makes the model with real weights, or None if they are not installed.
        neurons: whether feed-forward parts are blocks too, beside attention.
    """

    config: Callable[[Sizes], PretrainedConfig]
    phases: tuple[Phase, ...] = (Phase.PREFILL,)
    unit: Unit | None = None
    load: Callable[[], nn.Module | None] = lambda: None
    neurons: bool = False

    def build(self, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The model in evaluation mode, made on the device."""
        model = self.load()
        if model is None:
            auto: Any = AutoModelForCausalLM if Phase.DECODE in self.phases else AutoModel
            with torch.device(device):
                model = auto.from_config(self.config(sizes), dtype=dtype)
        return model.to(device=device, dtype=dtype).eval().requires_grad_(False)

    def batch(self, sizes: Sizes, phase: Phase, dtype: torch.dtype) -> dict[str, Tensor]:
        """Random inputs without padding and without a mask, the same on every call."""
        config: Any = self.config(sizes)
        draws = torch.Generator().manual_seed(0)
        if isinstance(config, ViTConfig):
            side: Any = config.image_size
            images = torch.randn(sizes.examples, 3, side, side, generator=draws)
            return {"pixel_values": images.to(dtype)}
        rows, columns = sizes.examples, sizes.tokens
        if phase is Phase.DECODE:  # one position is left for the new token
            rows, columns = sizes.streams, min(sizes.context, config.max_position_embeddings - 1)
        ids = torch.randint(config.vocab_size // 2, (rows, columns), generator=draws)
        return {"input_ids": ids + config.vocab_size // 4}


def _bert(hidden: int, layers: int, heads: int) -> Callable[[Sizes], PretrainedConfig]:
    return lambda _: BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
    )


def _llama(sizes: Sizes) -> PretrainedConfig:
    """Layers of Llama 3 8B. The vocabulary is small, so that the head does not outweigh few layers."""
    return LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=sizes.layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=8192,
        max_position_embeddings=8192,
    )


def _tiny(
    kind: Callable[..., PretrainedConfig], **more: int
) -> Callable[[Sizes], PretrainedConfig]:
    return lambda _: kind(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        **more,
    )


def _minilm() -> nn.Module | None:
    try:
        folder = demo_model()
    except DemoError:
        return None
    model: nn.Module = AutoModel.from_pretrained(folder)
    return model


SHAPES = {
    "minilm": Shape(_bert(384, 6, 12), load=_minilm),
    "bert-base": Shape(_bert(768, 12, 12)),
    "llama-8b-layers": Shape(_llama, BOTH),
    "gpt2": Shape(lambda _: GPT2Config(), BOTH),
    "bert-large": Shape(_bert(1024, 24, 16)),
    "vit-base": Shape(lambda _: ViTConfig()),
    "llama-8b-slots": Shape(_llama, BOTH, Unit.QUERY_SLOT),
    "minilm-both": Shape(_bert(384, 6, 12), load=_minilm, neurons=True),
}
"""By name, the most important first."""

TINY = {
    "tiny-encoder": Shape(_tiny(BertConfig)),
    "tiny-decoder": Shape(_tiny(LlamaConfig, num_key_value_heads=2), BOTH),
    "tiny-both": Shape(_tiny(BertConfig), neurons=True),
}
"""To try the benchmark itself."""
