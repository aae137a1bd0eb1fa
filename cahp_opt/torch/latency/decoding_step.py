"""One decoding step: a new token for every example, against a cache that a context has filled."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput

from cahp_opt.torch.latency.cache import snapshot
from cahp_opt.torch.latency.stopwatch import Work
from cahp_opt.torch.running.batches import Batch, has_decoder_input, inputs_of
from cahp_opt.torch.running.cache_tensors import CACHE_NAMES, cache_of

_ENCODED = ("encoder_hidden_states", "encoder_attention_mask")  # what decoders of a pair still read


def decoding_step(model: nn.Module, batch: Batch, run: nn.Module | None = None) -> Work:
    """The step after ``batch``, ready to be run again and again.

    Args:
        model: a model that generates text, in evaluation mode.
        batch: the context; for encoder-decoders what the encoder and the decoder have read.
        run: a module to run in place of the model, such as the model compiled; None for the model.

    Raises:
        ValueError: if the model fills no key/value cache, or the batch holds no token ids.
    """
    inputs = inputs_of(batch)
    name = "decoder_input_ids" if has_decoder_input(batch) else "input_ids"
    ids = inputs.get(name)
    if not isinstance(ids, Tensor):
        raise ValueError(f"`batch` must hold `{name}` to decode after, and has {sorted(inputs)}.")
    try:
        with torch.no_grad():
            output: Any = model(**{**inputs, "use_cache": True})
    except (TypeError, ValueError) as error:
        if "use_cache" not in str(error):
            raise
        output = None
    cache = cache_of(output)
    if not isinstance(cache, Cache) or not cache.get_seq_length():
        raise ValueError(
            f"`model` is a {type(model).__name__} that fills no key/value cache, so there is nothing to "
            "decode with; measure the prefill phase."
        )
    known = inspect.signature(model.forward).parameters
    named = next((name for name in CACHE_NAMES if name in known), CACHE_NAMES[-1])
    step: dict[str, Any] = {name: ids[:, -1:], named: cache, "use_cache": True}
    if name == "decoder_input_ids":
        step["encoder_outputs"] = BaseModelOutput(output.encoder_last_hidden_state)
        if isinstance(inputs.get("attention_mask"), Tensor):
            step["attention_mask"] = inputs["attention_mask"]
        grown = "decoder_attention_mask"
    else:
        step |= {key: inputs[key] for key in _ENCODED if key in inputs}
        grown = "attention_mask"
    mask = inputs.get(grown)
    if isinstance(mask, Tensor):
        step[grown] = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    runner = model if run is None else run
    return Work(lambda: runner(**step), snapshot(cache))
