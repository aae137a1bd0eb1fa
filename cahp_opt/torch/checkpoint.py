"""Saving a sliced model and loading it again.

The folder is an ordinary transformers folder (safetensors, configuration, tokenizer) with the
selection beside it. The configuration still describes the unpruned model: loading builds that one
without storage, slices it, and leaves everything else (dtype, device, sharding, tied weights) to the
stock loader. The stock ``from_pretrained`` alone refuses such a folder, because the shapes differ.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import transformers
from safetensors import SafetensorError
from torch import nn

from cahp_opt.records import PathLike, RecordError
from cahp_opt.selection import Selection
from cahp_opt.torch.attention import find_attention
from cahp_opt.torch.folders import whole_folder
from cahp_opt.torch.masking import attention_for
from cahp_opt.torch.slicing import SELECTION, selection_of
from cahp_opt.torch.surgery import Journal, cut, freeze_ghosts

SELECTION_FILE = "cahp_selection.json"
"""Name of the selection's file in a saved folder."""


@runtime_checkable
class Saveable(Protocol):
    """Anything transformers can save: a model, a tokenizer, a processor."""

    def save_pretrained(self, save_directory: str, /) -> Any:
        """Write it to a folder."""
        ...


def save_pretrained(
    model: nn.Module,
    directory: PathLike,
    *,
    tokenizer: Saveable | None = None,
    overwrite: bool = False,
) -> None:
    """Write a sliced model, its selection and its tokenizer to a folder, whole or not at all.

    Args:
        model: a model from :func:`~cahp_opt.torch.slice_heads` or :func:`from_pretrained`.
        directory: the folder; it must be new or empty.
        tokenizer: saved beside the model, if given.
        overwrite: replace a folder with content.

    Raises:
        FileExistsError: if the folder has content and ``overwrite`` is false.
        ValueError: if the model is not a transformers model, or was not sliced.
        OSError: if it cannot be written; nothing half written stays.
    """
    selection = selection_of(model)
    if selection is None:
        raise ValueError(
            "`model` was not sliced by this library; use `slice_heads` first, or the model's own "
            "`save_pretrained` for an unpruned model."
        )
    if not isinstance(model, Saveable):
        raise ValueError(
            f"`model` is a {type(model).__name__} without `save_pretrained`; pass the transformers "
            "model inside it."
        )
    with whole_folder(directory, overwrite=overwrite) as folder:
        model.save_pretrained(str(folder))
        selection.save(folder / SELECTION_FILE)
        if tokenizer is not None:
            tokenizer.save_pretrained(str(folder))


def from_pretrained(directory: PathLike, **kwargs: Any) -> Any:
    """Load a model written by :func:`save_pretrained`; it equals the saved one exactly.

    Args:
        directory: the folder.
        **kwargs: for the stock ``from_pretrained`` of the model's class, such as ``dtype`` or
            ``device_map``. The dtype is that of the file unless given.

    Returns:
        The sliced model, an instance of its stock class.

    Raises:
        RecordError: if the folder has no selection or configuration, or they do not fit each other
            or the weights.
        FileNotFoundError: if there is no such folder.
        ValueError: if ``ignore_mismatched_sizes`` or ``output_loading_info`` is given.
    """
    for name in ("ignore_mismatched_sizes", "output_loading_info"):
        if kwargs.get(name):
            raise ValueError(
                f"`{name}` cannot be used here: weights that do not fit must end in an error."
            )
    folder = Path(directory)
    selection = _read_selection(folder)
    stock = _stock_class(folder)
    if "torch_dtype" not in kwargs:
        kwargs.setdefault("dtype", "auto")
    try:
        loaded = _sliced_class(stock, selection, folder).from_pretrained(
            str(folder), output_loading_info=True, **kwargs
        )
    except SafetensorError as error:
        raise RecordError(f"{folder} holds weights that cannot be read ({error}).") from None
    except RuntimeError as error:
        if "mismatch" not in str(error):
            raise
        raise RecordError(
            f"{folder / SELECTION_FILE} does not fit the weights beside it: their shapes are those of "
            "another selection; save the model again."
        ) from error
    model, info = cast("tuple[nn.Module, Mapping[str, Any]]", loaded)
    missing = sorted(info["missing_keys"])
    if missing:
        raise RecordError(
            f"{folder} lacks the weights {', '.join(missing[:4])}{', ...' if missing[4:] else ''}; "
            "save the model again."
        )
    # Nothing of the subclass is needed any more; a stock instance can be pickled and saved as ever.
    model.__class__ = stock
    freeze_ghosts(find_attention(model))  # the loader makes every weight trainable
    return model


def _read_selection(folder: Path) -> Selection:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; `from_pretrained` reads a folder written by `save_pretrained`."
        )
    path = folder / SELECTION_FILE
    if not path.is_file():
        raise RecordError(
            f"{folder} has no {SELECTION_FILE}, so it is not a folder of a sliced model; load it with "
            "the stock `from_pretrained`."
        )
    return Selection.load(path)


def _stock_class(folder: Path) -> Any:
    """The transformers class that the folder's configuration names."""
    path = folder / "config.json"
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
        name = str(config["architectures"][0])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        raise RecordError(
            f"{path} cannot be read, or names no architecture; save the model again."
        ) from None
    stock: object = getattr(transformers, name, None)
    if not isinstance(stock, type) or not issubclass(stock, transformers.PreTrainedModel):
        raise RecordError(
            f"{path} names the architecture {name!r}, and the installed transformers "
            f"{transformers.__version__} has no such model."
        )
    return stock


def _sliced_class(stock: Any, selection: Selection, folder: Path) -> Any:
    """A subclass of ``stock`` whose instances are sliced as soon as they are built.

    The stock loader builds it on the meta device and then fills it, so slicing costs nothing.
    """

    def build(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        stock.__init__(self, *args, **kwargs)
        _apply(self, selection, folder)

    names = {"__init__": build, "__module__": stock.__module__, "__doc__": stock.__doc__}
    return type(stock.__name__, (stock,), names)


def _apply(model: nn.Module, selection: Selection, folder: Path) -> None:
    """Slice a newly built model as the saved one was."""
    attention = attention_for(model, selection)
    mine, theirs = attention.space.blocks, selection.space.blocks
    # Paths differ between classes and releases; order, sizes and kinds do not.
    if [b[1:] for b in mine] != [b[1:] for b in theirs]:
        raise RecordError(
            f"{folder / SELECTION_FILE} is of another model: it has {_shape(theirs)}, and the "
            f"configuration beside it {_shape(mine)}."
        )
    renamed = dataclasses.replace(selection, space=attention.space)
    cut(model, attention, renamed.kept, Journal())
    setattr(model, SELECTION, renamed)


def _shape(blocks: tuple[Any, ...]) -> str:
    sizes = " ".join(str(b.units) for b in blocks)
    kinds = "/".join(sorted({b.unit.value for b in blocks}))
    return f"blocks of {sizes} {kinds}s"
