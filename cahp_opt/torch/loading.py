"""Loading models and tokenizers by name, for the command line."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from cahp_opt.choices import Precision
from cahp_opt.torch.checkpoint import from_pretrained, is_sliced

_CLASSES = (
    ("ForSequenceClassification", transformers.AutoModelForSequenceClassification),
    ("ForTokenClassification", transformers.AutoModelForTokenClassification),
    ("ForCausalLM", transformers.AutoModelForCausalLM),
    ("LMHeadModel", transformers.AutoModelForCausalLM),
    ("ForMaskedLM", transformers.AutoModelForMaskedLM),
)


class ModelError(ValueError):
    """A model or its tokenizer cannot be loaded; the sentence says why."""


def quiet() -> None:
    """Keep advice and bars of transformers off the screen (downloads keep theirs); for the command
    line only."""
    models: Any = transformers.logging
    models.set_verbosity_error()
    models.disable_progress_bar()
    downloads: Any = huggingface_hub.logging
    downloads.set_verbosity_error()


def load_model(
    name: str, *, device: str | None = None, precision: Precision | None = None
) -> nn.Module:
    """A model with the head that its checkpoint has, in evaluation mode.

    Args:
        name: a folder, also one of a sliced model, or a hub id.
        device: where to put it; None for CUDA where there is one, else the CPU.
        precision: of the weights; None for float32 on the CPU and the checkpoint's own elsewhere.

    Raises:
        ModelError: if it cannot be loaded whole.
    """
    where = device_named(device)
    dtype: torch.dtype | str = "auto" if where.type != "cpu" else torch.float32
    if precision is not None:
        dtype = getattr(torch, precision.value)
    folder = Path(name)
    local = folder.is_dir()
    if is_sliced(folder):
        model = from_pretrained(folder, dtype=dtype)
    else:
        with _explained(name, "the configuration"):
            configs: Any = transformers.AutoConfig
            config = configs.from_pretrained(name, local_files_only=local)
        with _explained(name, "the weights"):
            model, found = _class(config).from_pretrained(
                name,
                config=config,
                dtype=dtype,
                local_files_only=local,
                output_loading_info=True,
            )
        # Encoders are often saved without the pooler that their class has; nothing here uses it.
        missing = sorted(key for key in found["missing_keys"] if "pooler" not in key)
        if missing:
            raise ModelError(
                f"{name} lacks the weights {', '.join(missing[:3])}{', ...' if missing[3:] else ''}, so "
                "parts of the model would be random; name a complete checkpoint."
            )
    try:
        return cast("nn.Module", model).to(where).eval()
    except (AssertionError, RuntimeError) as error:  # the first from a build without the device
        raise ModelError(f"{name} cannot be put on {where}: {_first_line(error)}") from None


def load_tokenizer(name: str) -> Any:
    """The tokenizer saved beside a model.

    Raises:
        ModelError: if there is none that can be loaded.
    """
    with _explained(name, "the tokenizer"):
        tokenizers: Any = transformers.AutoTokenizer
        return tokenizers.from_pretrained(name, local_files_only=Path(name).is_dir())


def _class(config: Any) -> Any:
    for architecture in config.architectures or ():
        for ending, auto in _CLASSES:
            if architecture.endswith(ending):
                return auto
    return transformers.AutoModel


def device_named(name: str | None) -> torch.device:
    """The device of this name; CUDA where there is one, else the CPU, if it is None.

    Raises:
        ModelError: if it is no device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise ModelError(
            f"`--device` must be a device such as cpu or cuda, got {name!r}."
        ) from None


@contextmanager
def _explained(name: str, part: str) -> Generator[None, None, None]:
    """Turn what transformers says, at length and in many ways, into one sentence."""
    try:
        yield
    except ImportError as error:
        raise ModelError(f"{part} of {name} cannot be loaded: {_first_line(error)}") from None
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        folder = Path(name)
        if not folder.is_dir():
            if folder.exists():
                why = "it is a file, and a folder or a hub id is expected"
            else:
                why = (
                    "there is no such folder, and no such model on the hub within reach; check the "
                    "name and the connection"
                )
        elif not (folder / "config.json").is_file():
            why = "it has no config.json; name the folder of a transformers model"
        elif isinstance(error, ValueError) and "model type" in str(error):
            why = (
                f"its model type {_model_type(folder)!r} is unknown to the installed transformers "
                f"{transformers.__version__}; name a model of a type that it knows"
            )
        else:
            why = _first_line(error)
        raise ModelError(f"{part} of {name} cannot be loaded: {why.rstrip('.')}.") from None


def _model_type(folder: Path) -> object:
    try:
        found: object = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return cast("dict[str, object]", found).get("model_type") if isinstance(found, dict) else None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
