"""Where a saved model came from: its hub id, its pooling, and the releases that wrote it."""

from __future__ import annotations

from collections.abc import Mapping

import huggingface_hub
import torch
import transformers
from huggingface_hub.errors import HFValidationError
from torch import nn

import cahp_opt
from cahp_opt.stats.pooling import POOLING, provenance_of
from cahp_opt.torch.evaluation.embedders import embedder_of

BASE_MODEL = "base_model"
"""Key of the hub id of the original model."""


def origin_of(model: nn.Module, known: Mapping[str, str]) -> dict[str, str]:
    """``known`` with the original model and how it embeds texts, as far as that is certain, and the releases.

    Args:
        model: a transformers model.
        known: facts that travel with the model; the hub id among them is older and stays.
    """
    found = None if BASE_MODEL in known else _hub_id(model)
    bare = getattr(model, "base_model", None) is model
    pooling = embedder_of(model).pooling if bare and POOLING not in known else None
    return {
        **known,
        **({} if found is None else {BASE_MODEL: found}),
        **provenance_of(pooling),
        "cahp-opt": cahp_opt.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _hub_id(model: nn.Module) -> str | None:
    """The name that the model was loaded by, if that is a model of the hub and not just a folder.

    The name alone is ambiguous (``runs/first`` could be either), so the local cache is asked.
    """
    name: object = getattr(getattr(model, "config", None), "_name_or_path", None)
    if not isinstance(name, str) or not name:
        return None
    try:
        cached = huggingface_hub.try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # a path
        return None
    return name if isinstance(cached, str) else None
