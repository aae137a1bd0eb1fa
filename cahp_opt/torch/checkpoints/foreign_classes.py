"""Classes whose code comes with a model; reading one runs that code."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

import transformers
from torch import nn

from cahp_opt.files.records import PathLike


def own_class(name: PathLike) -> type[nn.Module] | None:
    """The class of a model's own that its configuration names, by running the code beside the model.

    Args:
        name: the folder or the hub id.

    Returns:
        The class; it is saved with its code. None if the configuration names no such class.
    """
    code: Any = import_module("transformers.dynamic_module_utils")
    configs: Any = transformers.AutoConfig
    config = configs.from_pretrained(str(name), trust_remote_code=True)
    named: Any = (config.architectures or [None])[0]
    places: Mapping[str, object] = getattr(config, "auto_map", None) or {}
    for auto, reference in places.items():
        if isinstance(reference, str) and reference.rpartition(".")[2] == named:
            found: Any = code.get_class_from_dynamic_module(reference, str(name))
            if issubclass(found, transformers.PreTrainedModel):
                found.register_for_auto_class(auto)
                return cast("type[nn.Module]", found)
    return None


def is_foreign(cls: type[nn.Module]) -> bool:
    """Whether the code of a class came with a model, so that it is saved with it."""
    return getattr(cls, "_auto_class", None) is not None
