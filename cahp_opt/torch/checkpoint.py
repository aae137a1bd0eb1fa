"""Saving a sliced model and loading it again.

The folder is an ordinary transformers folder (safetensors, configuration, tokenizer) with the
selection and a model card beside it. The configuration still describes the unpruned model: loading
builds that one without storage, slices it, and leaves everything else (dtype, device, sharding, tied
weights) to the stock loader.

The stock ``from_pretrained`` alone cannot know what was cut. Under the usual name it would refuse the
weights because of their shapes, but with ``ignore_mismatched_sizes=True``, which many training scripts
set, it would replace them by random ones. So they are saved as the *variant* ``cahp``, a file name
that the stock loader does not look for: it ends in an error whatever its options.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import transformers
from safetensors import SafetensorError
from torch import nn

from cahp_opt.records import PathLike, RecordError
from cahp_opt.selection import Selection
from cahp_opt.torch.attention import find_attention
from cahp_opt.torch.card import CARD_FILE, model_card, write_card
from cahp_opt.torch.explicit import ExplicitAttention, explicit_attention
from cahp_opt.torch.folders import whole_folder
from cahp_opt.torch.learning import (
    attach_layouts,
    learnt_layouts,
    load_layouts,
    save_layouts,
)
from cahp_opt.torch.masking import attention_for
from cahp_opt.torch.origin import BASE_MODEL, origin_of
from cahp_opt.torch.output_check import compare_check, write_check
from cahp_opt.torch.slicing import SELECTION, selection_of
from cahp_opt.torch.surgery import Journal, cut, freeze_ghosts

SELECTION_FILE = "cahp_selection.json"
"""Name of the selection's file in a saved folder."""

LAYOUTS_FILE = "cahp_layouts.json"
"""Name of the file with the layouts that were learnt, in a folder of a model that has such."""

VARIANT = "cahp"
"""The weights are ``model.cahp.safetensors``, or shards with an index of such a name."""

EXPLICIT = "explicit_attention"
"""Key of the selection's provenance that tells to make nn.MultiheadAttention explicit first."""


class Saveable(Protocol):
    """Anything transformers can save: a tokenizer, a processor."""

    def save_pretrained(self, save_directory: str, /) -> Any:
        """Write it to a folder."""
        ...


def save_pretrained(
    model: nn.Module,
    directory: PathLike,
    *,
    tokenizer: Saveable | None = None,
    overwrite: bool = False,
    max_shard_size: int | str | None = None,
) -> None:
    """Write a sliced model, its selection, a model card and its tokenizer, whole or not at all.

    What :func:`~cahp_opt.torch.learn_attention` found out is written too, and loading uses it.

    Args:
        model: a model from :func:`~cahp_opt.torch.slice_heads` or :func:`from_pretrained`.
        directory: the folder; it must be new or empty.
        tokenizer: saved beside the model, if given.
        overwrite: replace a folder with content. A README.md that somebody wrote or edited stays, and
            the new card is then ``cahp_card.md``.
        max_shard_size: most bytes in one file of weights, or text such as ``"5GB"``; None for the
            default of transformers.

    Raises:
        FileExistsError: if the folder has content and ``overwrite`` is false.
        ValueError: if the model is not a transformers model, was not sliced, or holds adapters.
        OSError: if it cannot be written; nothing half written stays.
    """
    selection = selection_of(model)
    if selection is None:
        raise ValueError(
            "`model` was not sliced by this library; use `slice_heads` first, or the model's own "
            "`save_pretrained` for an unpruned model."
        )
    if not isinstance(model, transformers.PreTrainedModel):
        raise ValueError(
            f"`model` is a {type(model).__name__}, which is no transformers model; pass the one inside "
            "it (of a model with adapters: what `merge_and_unload()` returns)."
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            "`model` holds adapters, and transformers would save them without the weights below; "
            "save first and add them after loading, or merge them before slicing."
        )
    stock: Any = model
    options = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    known = selection.provenance
    if any(isinstance(module, ExplicitAttention) for module in model.modules()):
        known = {**known, EXPLICIT: "yes"}
    told = dataclasses.replace(selection, provenance=origin_of(model, known))
    card = model_card(
        told, architecture=type(model).__name__, base_model=told.provenance.get(BASE_MODEL)
    )
    with whole_folder(directory, overwrite=overwrite) as folder:
        stock.save_pretrained(str(folder), variant=VARIANT, **options)
        told.save(folder / SELECTION_FILE)
        if learnt := learnt_layouts(model):
            save_layouts(folder / LAYOUTS_FILE, learnt)
        if tokenizer is not None:
            tokenizer.save_pretrained(str(folder))
        write_check(model, folder)
        write_card(folder, card, old=Path(directory) / CARD_FILE)


def from_pretrained(
    directory: PathLike, *, model_class: type[nn.Module] | None = None, **kwargs: Any
) -> Any:
    """Load a model written by :func:`save_pretrained`; it equals the saved one exactly.

    Args:
        directory: the folder.
        model_class: the transformers class to make; None for the one that was saved. It is needed for
            classes that transformers does not export, and may be another class of the same model, with
            or without a head. What the folder has no weights for is then new, and a warning names it.
        **kwargs: for the stock ``from_pretrained`` of the model's class, such as ``dtype`` or
            ``device_map``. The dtype is that of the file unless given.

    Returns:
        The sliced model, an instance of its stock class. Where it can be run on inputs made up, a few of
        its output numbers were compared with those of the model that was saved.

    Raises:
        RecordError: if the folder has no selection or configuration, or they do not fit each other,
            the class or the weights, or the loaded model answers otherwise than the saved one.
        FileNotFoundError: if there is no such folder.
        ValueError: if ``model_class`` is no transformers class, or ``ignore_mismatched_sizes``,
            ``output_loading_info`` or ``variant`` is given.
    """
    for name in ("ignore_mismatched_sizes", "output_loading_info", "variant"):
        if kwargs.get(name):
            raise ValueError(
                f"`{name}` cannot be used here: weights that do not fit must end in an error."
            )
    folder = Path(directory)
    selection = _read_selection(folder)
    named = _architecture(folder)
    stock = _exported_class(named, folder) if model_class is None else _given_class(model_class)
    if "torch_dtype" not in kwargs:
        kwargs.setdefault("dtype", "auto")
    kwargs.setdefault("use_safetensors", True)  # never a pickle
    if any(folder.glob(f"*.{VARIANT}*")):  # older folders have the usual names
        kwargs["variant"] = VARIANT
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
    # Nothing of the subclass is needed any more; a stock instance can be pickled and saved as ever.
    model.__class__ = stock
    _check_complete(model, sorted(info["missing_keys"]), folder, other=stock.__name__ != named)
    freeze_ghosts(find_attention(model))  # the loader makes every weight trainable
    if "quantization_config" not in kwargs:
        compare_check(model, folder)
    return model


def _check_complete(model: nn.Module, missing: list[str], folder: Path, *, other: bool) -> None:
    """Refuse a folder that lacks weights, except for what another class has beyond the saved one."""
    if not missing:
        return
    named = f"{', '.join(missing[:4])}{', ...' if missing[4:] else ''}"
    blocks = tuple(f"{block.name}." for block in find_attention(model))
    if not other or any(key.startswith(blocks) for key in missing):
        raise RecordError(f"{folder} lacks the weights {named}; save the model again.")
    warnings.warn(
        f"{folder} has no weights for {named} of {type(model).__name__}; they are new and untrained.",
        stacklevel=3,
    )


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


def _architecture(folder: Path) -> str:
    """The name of the class that was saved."""
    path = folder / "config.json"
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
        return str(config["architectures"][0])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        raise RecordError(
            f"{path} cannot be read, or names no architecture; save the model again."
        ) from None


def _exported_class(name: str, folder: Path) -> Any:
    stock: object = getattr(transformers, name, None)
    if not _is_model_class(stock):
        raise RecordError(
            f"{folder / 'config.json'} names the architecture {name!r}, and the installed transformers "
            f"{transformers.__version__} exports no such model; pass the class as `model_class`."
        )
    return stock


def _given_class(given: object) -> Any:
    if not _is_model_class(given):
        raise ValueError(
            f"`model_class` must be a subclass of transformers.PreTrainedModel, got {given!r}; of an "
            "Auto class, name the class that it would choose."
        )
    return given


def _is_model_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, transformers.PreTrainedModel)


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
    if EXPLICIT in selection.provenance:
        explicit_attention(model)
    if (folder / LAYOUTS_FILE).is_file():
        attach_layouts(model, load_layouts(folder / LAYOUTS_FILE))
    attention = attention_for(model, selection)
    mine, theirs = attention.space, selection.space
    # Paths differ between classes and releases; order, sizes and kinds do not.
    if mine.kinds != theirs.kinds:
        raise RecordError(
            f"{folder / SELECTION_FILE} is of another model: it has {_shape(theirs.blocks)}, and the "
            f"configuration beside it {_shape(mine.blocks)}."
        )
    renamed = dataclasses.replace(selection, space=attention.space)
    cut(model, attention, renamed.kept, Journal())
    setattr(model, SELECTION, renamed)


def _shape(blocks: tuple[Any, ...]) -> str:
    sizes = " ".join(str(b.units) for b in blocks)
    kinds = "/".join(sorted({b.unit.value for b in blocks}))
    return f"blocks of {sizes} {kinds}s"
