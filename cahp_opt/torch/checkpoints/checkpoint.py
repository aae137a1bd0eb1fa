"""Saving a sliced model and loading it again.

The folder is an ordinary transformers folder (safetensors, configuration, tokenizer) with the
selection and a model card beside it. The configuration still describes the unpruned model: loading
builds that one without storage, slices it, and leaves everything else (dtype, device, sharding, tied
weights) to the stock loader.

The stock ``from_pretrained`` alone cannot know what was cut. Under the usual name it would refuse the
weights because of their shapes, but with ``ignore_mismatched_sizes=True``, which many training scripts
set, it would replace them by random ones. So they are saved under a name that it does not look for
whatever its options (see :mod:`cahp_opt.torch.checkpoints.weight_files`): it ends in an error. With
``trust_remote_code=True`` the Auto classes run the modelling file in the folder, which knows (see
:mod:`cahp_opt.torch.checkpoints.self_contained`).

Folders that the stock ``save_pretrained`` writes of a sliced model, such as the checkpoints of
``transformers.Trainer``, have the usual names; the selection is in the configuration, and loads
from it.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from cahp_opt.files.belongings import CARD_FILE
from cahp_opt.files.folders import whole_folder
from cahp_opt.files.records import PathLike, RecordError
from cahp_opt.selection import Selection
from cahp_opt.space import HeadSpace
from cahp_opt.torch.blocks.blocks import CUT, Cut
from cahp_opt.torch.blocks.explicit import explicit_attention
from cahp_opt.torch.blocks.finder import (
    Prunable,
    UnsupportedModelError,
    blocks_cut,
    find_prunable,
    reread,
    with_all_cut,
)
from cahp_opt.torch.checkpoints.card import model_card, write_card
from cahp_opt.torch.checkpoints.foreign_classes import own_class
from cahp_opt.torch.checkpoints.hub import PLACES, sliced_folder
from cahp_opt.torch.checkpoints.module_record import record_of
from cahp_opt.torch.checkpoints.origin import BASE_MODEL, origin_of
from cahp_opt.torch.checkpoints.output_check import compare_check, write_check
from cahp_opt.torch.checkpoints.self_contained import auto_class, forget, make_self_contained
from cahp_opt.torch.checkpoints.sentence_files import SentenceFiles
from cahp_opt.torch.checkpoints.weight_files import Writer, hide_from_stock, weights_in
from cahp_opt.torch.running.undo import Journal
from cahp_opt.torch.slicing.bypass import bypass_where_possible
from cahp_opt.torch.slicing.modeling_cahp import ENTRY, NAME_OF_WEIGHTS, NEEDS, own_config
from cahp_opt.torch.slicing.slicing import SELECTION, selection_in, selection_of
from cahp_opt.torch.slicing.surgery import cut, freeze_ghosts
from cahp_opt.torch.slicing.travelling import (
    EXPLICIT,
    Blueprint,
    blueprint_of,
    has_sliced_part,
    send_along,
    sent_along,
)
from cahp_opt.torch.tracing.learning import attach_layouts, load_layouts, save_layouts

SELECTION_FILE = "cahp_selection.json"
"""Name of the selection's file in a saved folder."""

LAYOUTS_FILE = "cahp_layouts.json"
"""Name of the file with the layouts that were learnt, in a folder of a model that has such."""


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

    A modelling file is written too, so that ``AutoModel.from_pretrained(directory, trust_remote_code=True)``
    and the other Auto classes load the model without this library; what they load is of a class of that file,
    skips the blocks that ``model`` skips, and cannot be pruned further.
    Layouts from :func:`~cahp_opt.torch.learn_attention` are written too, and used in loading. The files of
    sentence-transformers in the folder or repository that the model was loaded from are copied: the list of
    modules, pooling, normalisation, dense layers, prompts. A warning says why if they cannot be.

    Args:
        model: a model from :func:`~cahp_opt.torch.slice_heads` or :func:`from_pretrained`.
        directory: the folder; it must be new or empty.
        tokenizer: saved beside the model, if given.
        overwrite: replace a model that this library wrote there. Whatever else is in the folder stays;
            beside a README.md that somebody wrote or edited the new card is ``cahp_card.md``.
        max_shard_size: most bytes in one file of weights, or text such as ``"5GB"``; None for the
            default of transformers.

    Raises:
        FileExistsError: if the folder has content and ``overwrite`` is false, or holds no model of this
            library, or weights of somebody else beside it.
        ValueError: if the model is not a transformers model, was not sliced, holds adapters, or is not what
            its configuration describes, so that it could not be loaded again.
        OSError: if it cannot be written; nothing half written stays.
    """
    selection = selection_of(model)
    if selection is None:
        _check_stock(model)
        raise ValueError(
            "`model` was not sliced by this library; use `slice_heads` first, or the model's own "
            "`save_pretrained` for an unpruned model."
        )
    _check_kind(model)
    blueprint = blueprint_of(model, selection)
    built = _check_described(model, blueprint)
    options = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    beside = SentenceFiles.of(model)
    if beside.note:
        warnings.warn(beside.note, stacklevel=2)
    _write(model, built, blueprint, directory, tokenizer, beside, overwrite=overwrite, **options)


def save_sliced(
    prunable: Prunable,
    directory: PathLike,
    *,
    tokenizer: Saveable | None = None,
    beside: SentenceFiles | None = None,
) -> None:
    """:func:`save_pretrained` for a sliced model whose blocks were found already, and the files that go
    along."""
    blueprint, built = _saveable(prunable)
    found = SentenceFiles() if beside is None else beside
    _write(prunable.model, built, blueprint, directory, tokenizer, found, overwrite=False)


def _write(
    model: nn.Module,
    built: nn.Module,
    blueprint: Blueprint,
    directory: PathLike,
    tokenizer: Saveable | None,
    beside: SentenceFiles,
    *,
    overwrite: bool,
    **options: Any,
) -> None:
    stock: Any = model
    told = dataclasses.replace(
        blueprint.selection, provenance=origin_of(model, blueprint.selection.provenance)
    )
    blocks = told.space.blocks
    unstated = any(not block.unit.of_attention and block.order is None for block in blocks)
    cls = type(model)
    exported = getattr(transformers, cls.__name__, None) is cls
    record = record_of(_rebuilt(cls, stock.config), built, model) if exported else None
    alone = record is not None and NEEDS not in record
    card = model_card(
        told,
        architecture=cls.__name__,
        auto_class=auto_class(cls) if alone else None,
        base_model=told.provenance.get(BASE_MODEL),
        neurons=_neurons(model) if unstated else None,  # an order states the number too
    )
    with whole_folder(directory, overwrite=overwrite) as folder:
        stock.save_pretrained(str(folder), **options)
        hide_from_stock(folder)
        if record is not None:
            make_self_contained(folder, record)
        told.save(folder / SELECTION_FILE)
        if blueprint.layouts:
            save_layouts(folder / LAYOUTS_FILE, blueprint.layouts)
        if tokenizer is not None:
            tokenizer.save_pretrained(str(folder))
        beside.write(folder)
        write_check(model, folder)
        write_card(folder, card, old=Path(directory) / CARD_FILE)


def _neurons(model: nn.Module) -> dict[str, int] | None:
    """How many neurons the original's feed-forward parts have, by block; None if nobody can tell."""
    try:
        parts = blocks_cut(model).feed_forward
    except UnsupportedModelError:  # it was quantised since
        return None
    return {part.name: part.width // part.units * part.cut.units for part in parts} or None


def from_pretrained(
    directory: PathLike,
    *,
    model_class: type[nn.Module] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    **kwargs: Any,
) -> Any:
    """Load a model written by :func:`save_pretrained`, from a folder or the hub; it equals the saved one exactly.

    A folder that the stock ``save_pretrained`` wrote of a sliced model loads too, such as a checkpoint of
    ``transformers.Trainer``: the selection is in its configuration.

    Args:
        directory: the folder, or an id on the hub such as ``owner/name``; a folder of that name wins.
        model_class: the transformers class to make; None for the one that was saved. It is needed for
            classes that transformers does not export, and may be another class of the same model, with
            or without a head. Weights that the folder lacks are then new, and a warning names them.
        revision: a branch, tag or commit on the hub.
        token: of an account on the hub; None for the one that is logged in, if any.
        **kwargs: for the stock ``from_pretrained`` of the model's class, such as ``dtype`` or
            ``device_map``. The dtype is that of the file unless given. ``trust_remote_code=True`` runs code
            beside the model if transformers does not export its class.

    Returns:
        The sliced model, an instance of its stock class. If it can be run on made-up inputs, a few
        of its output numbers were compared with those of the saved model, and blocks without kept
        units are skipped where :func:`~cahp_opt.torch.bypass_empty` finds that they can be.

    Raises:
        RecordError: if the folder has no selection or configuration, or several sets of weights, or they do
            not fit each other or the class, or the outputs of the loaded model differ from those of
            the saved one.
        FileNotFoundError: if there is no such folder.
        ModelError: if the hub does not give it.
        ValueError: if ``model_class`` is not a transformers class, or ``ignore_mismatched_sizes``,
            ``output_loading_info`` or ``variant`` is given.
    """
    for name in ("ignore_mismatched_sizes", "output_loading_info", "variant"):
        if kwargs.get(name):
            raise ValueError(
                f"`{name}` cannot be used here: weights that do not fit must end in an error."
            )
    folder = sliced_folder(
        directory,
        revision=revision,
        token=token,
        weights="*.safetensors" if kwargs.get("use_safetensors") is not False else "*.bin",
        places={place: kwargs.pop(place) for place in PLACES if place in kwargs},
    )
    name, writer = _weights(folder)
    blueprint = _blueprint(folder, writer)
    slicer = _Slicer(blueprint)
    if not name:
        raise RecordError(
            f"{folder} has no file of weights (or of their index); save the model again."
        )
    named = _architecture(folder)
    trusted = bool(kwargs.pop("trust_remote_code", False))
    if model_class is None:
        stock = _named_class(named, folder, trusted=trusted)
    else:
        stock = _given_class(model_class)
    if "torch_dtype" not in kwargs:
        kwargs.setdefault("dtype", "auto")
    if writer is Writer.CAHP:
        kwargs = _naming(name, stock, folder, kwargs)
    elif writer is Writer.CAHP_EARLIER:
        kwargs["variant"] = "cahp"
    elif writer is Writer.STOCK_PICKLED and kwargs.get("use_safetensors") is not False:
        raise RecordError(
            f"{folder} holds pickled weights, {name}, which can run code when they are read; if you trust "
            "them, pass `use_safetensors=False`."
        )
    kwargs.setdefault("use_safetensors", True)  # never a pickle
    try:
        loaded = _sliced_class(stock, slicer).from_pretrained(
            str(folder), output_loading_info=True, **kwargs
        )
    except SafetensorError as error:
        raise RecordError(f"{folder} holds weights that cannot be read ({error}).") from None
    except RuntimeError as error:
        if "mismatch" not in str(error):
            raise
        raise RecordError(
            f"{blueprint.source} does not fit the weights beside it: their shapes are those of another "
            "selection; save the model again, or take it out if the model is not sliced."
        ) from error
    model, info = cast("tuple[nn.Module, Mapping[str, Any]]", loaded)
    # Nothing of the subclass is needed any more; a stock instance can be pickled and saved as ever.
    model.__class__ = stock
    vars(model.config).pop(NAME_OF_WEIGHTS, None)
    forget(model.config)
    assert slicer.known is not None  # it sliced the model when that was built
    prunable = slicer.known
    _check_complete(prunable, sorted(info["missing_keys"]), folder, other=stock.__name__ != named)
    prunable = reread(prunable)
    freeze_ghosts(prunable)  # the loader makes every weight trainable
    # Beside weights that were trained since, the check is that of others.
    if "quantization_config" not in kwargs and blueprint.source == str(folder / SELECTION_FILE):
        compare_check(model, folder)
    bypass_where_possible(prunable)
    return model


def is_sliced(folder: Path) -> bool:
    """Whether a folder is one of a sliced model, written by this library or by the stock."""
    return (folder / SELECTION_FILE).is_file() or sent_along(folder) is not None


def _check_complete(prunable: Prunable, missing: list[str], folder: Path, *, other: bool) -> None:
    """Refuse a folder that lacks weights, except for what another class has beyond the saved one."""
    if not missing:
        return
    named = f"{', '.join(missing[:4])}{', ...' if missing[4:] else ''}"
    sites = tuple(f"{block.place}." for block in prunable.attention)
    parts = {f"{b.place}.{piece.path}".lstrip(".") for b in prunable for piece in b.pieces}
    if not other or any(key.startswith(sites) or key in parts for key in missing):
        raise RecordError(f"{folder} lacks the weights {named}; save the model again.")
    warnings.warn(
        f"{folder} has no weights for {named} of {type(prunable.model).__name__}; they are new and untrained.",
        stacklevel=3,
    )


def _weights(folder: Path) -> tuple[str, Writer]:
    """The file of a folder's weights, and who wrote it; refuses a folder that does not hold a whole
    model."""
    if not folder.is_dir():
        why = "is a file; load it with `torch.load`" if folder.exists() else "is not a folder"
        raise FileNotFoundError(
            f"{folder} {why}; `from_pretrained` reads a folder written by `save_pretrained`."
        )
    found = weights_in(folder)
    if (folder / "adapter_config.json").is_file() and found is None:
        raise RecordError(
            f"{folder} holds an adapter and not the model that it was trained on; load that one with "
            "`from_pretrained`, and then `peft.PeftModel.from_pretrained(model, folder)`."
        )
    if found is not None and not (folder / "config.json").is_file():
        raise RecordError(
            f"{folder} holds weights without a config.json, as accelerate saves them; load the model that "
            "was trained, and then the weights into it, with `accelerate.load_checkpoint_in_model`."
        )
    return found or ("", Writer.CAHP)


def _blueprint(folder: Path, writer: Writer) -> Blueprint:
    """How the folder's model is sliced: by the record of whoever wrote the weights."""
    path = folder / SELECTION_FILE
    sent = sent_along(folder) if writer in (Writer.STOCK, Writer.STOCK_PICKLED) else None
    if sent is not None:
        return sent
    if not path.is_file():
        raise RecordError(f"{folder} has no {SELECTION_FILE}, {_why_none(folder)}")
    layouts = folder / LAYOUTS_FILE
    return Blueprint(
        Selection.load(path), load_layouts(layouts) if layouts.is_file() else (), str(path)
    )


def _why_none(folder: Path) -> str:
    if has_sliced_part(folder):
        return (
            "and its configuration describes a model of which only a part was sliced; save such a model with "
            "`cahp_opt.torch.save_pretrained`."
        )
    return (
        "so it is not a folder of a sliced model; load it with the stock `from_pretrained`. (If it is a "
        "checkpoint of a sliced model that an earlier release loaded, copy that model's file beside it.)"
    )


def _naming(name: str, stock: Any, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options for the stock loader that name the file of the weights, which it would not look for."""
    given = dict(options)
    config, rest = own_config(stock, folder, given.pop("config", None), given)
    setattr(config, NAME_OF_WEIGHTS, name)
    return {**rest, "config": config}


def check_saveable(prunable: Prunable) -> Blueprint:
    """Refuse a model, sliced or about to be, that :func:`save_pretrained` would refuse in the end.

    Returns:
        The blueprint by which it can be built again.

    Raises:
        ValueError: as there.
    """
    return _saveable(prunable)[0]


def _saveable(prunable: Prunable) -> tuple[Blueprint, nn.Module]:
    """The blueprint of :func:`check_saveable`, and a model that was built by it."""
    model = prunable.model
    _check_kind(model)
    prunable = with_all_cut(prunable)
    known = selection_in(prunable)
    if known is None:
        known = Selection.from_kept(prunable.space, [True] * prunable.space.n)
    blueprint = blueprint_of(model, known)
    return blueprint, _check_described(model, blueprint, prunable)


def _check_kind(model: nn.Module) -> None:
    if not isinstance(model, transformers.PreTrainedModel):
        raise ValueError(
            f"`model` is a {type(model).__name__}, which is not a transformers model; pass the one inside "
            "it (of a model with adapters: what `merge_and_unload()` returns)."
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            "`model` holds adapters, and transformers would save them without the weights below; "
            "save first and add them after loading, or merge them before slicing."
        )
    _check_stock(model)


def _check_stock(model: nn.Module) -> None:
    if hasattr(getattr(model, "config", None), ENTRY):
        raise ValueError(
            "`model` was built by the modelling file of a pruned folder (`trust_remote_code=True`), which keeps "
            "no trace of what was removed; load that folder with `cahp_opt.torch.from_pretrained`."
        )


def _check_described(
    model: nn.Module, blueprint: Blueprint, known: Prunable | None = None
) -> nn.Module:
    """Refuse a model that its configuration does not build: loading would find other weights.

    Returns:
        The model that the configuration builds.
    """
    config: Any = getattr(model, "config", None)
    packed = getattr(config, "quantization_config", None) is not None
    slicer = _Slicer(blueprint, None if packed else known)
    built = _rebuilt(_sliced_class(type(model), slicer), config)
    if packed:
        return built  # the loader packs the weights in its own way
    mine, theirs = (
        {name: list(weight.shape) for name, weight in m.state_dict().items()}
        for m in (model, built)
    )
    for name in sorted(mine.keys() | theirs.keys(), key=[*theirs, *mine].index):
        has, makes = (shapes.get(name) for shapes in (mine, theirs))
        if has != makes:
            told, other = (f"of shape {shape}" if shape else "absent" for shape in (has, makes))
            raise ValueError(
                f"`model` is not what its configuration describes: {name} is {told} in the model and {other} "
                "by the configuration, so what is saved could never be loaded; set the configuration to "
                "what was changed by hand (such as `num_labels` or `vocab_size`), or undo the change."
            )
    return built


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


def _named_class(name: str, folder: Path, *, trusted: bool) -> Any:
    """The class that transformers exports, or the one whose code is in the folder, if that may be run."""
    stock: object = getattr(transformers, name, None)
    if _is_model_class(stock):
        return stock
    own = own_class(folder) if trusted else None
    if own is None:
        code = "" if trusted else ", or `trust_remote_code=True` if its code is in the folder"
        raise RecordError(
            f"{folder / 'config.json'} names the architecture {name!r}, and the installed transformers "
            f"{transformers.__version__} exports no such model; pass the class as `model_class`{code}."
        )
    return own


def _given_class(given: object) -> Any:
    if not _is_model_class(given):
        raise ValueError(
            f"`model_class` must be a subclass of transformers.PreTrainedModel, got {given!r}; of an "
            "Auto class, name the class that it would choose."
        )
    return given


def _is_model_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, transformers.PreTrainedModel)


def _rebuilt(cls: Any, config: object) -> nn.Module:
    """A model of a configuration, without storage unless its class looks at numbers while it is built."""
    untyped: Any = torch
    try:
        with torch.device("meta"):
            return cast("nn.Module", cls(copy.deepcopy(config)))
    except (RuntimeError, NotImplementedError):
        with untyped.random.fork_rng(devices=[]):
            return cast("nn.Module", cls(copy.deepcopy(config)))


def _sliced_class(stock: Any, slicer: _Slicer) -> Any:
    """A subclass of ``stock`` whose instances are sliced as soon as they are built.

    The stock loader builds it on the meta device and then fills it, so slicing costs nothing.
    """

    def build(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        stock.__init__(self, *args, **kwargs)
        slicer.slice(self)

    names = {"__init__": build, "__module__": stock.__module__, "__doc__": stock.__doc__}
    return type(stock.__name__, (stock,), names)


@dataclasses.dataclass
class _Slicer:
    """Slices newly built models as a saved one was.

    Args:
        blueprint: how the saved model is built.
        known: the blocks of such a model; None to find them. Those of the last one that was sliced, then.
    """

    blueprint: Blueprint
    known: Prunable | None = None

    def slice(self, model: nn.Module) -> None:
        """Slice a model, in place."""
        selection = self.blueprint.selection
        if EXPLICIT in selection.provenance:
            explicit_attention(model)
        attach_layouts(model, self.blueprint.layouts)
        found = self._blocks(model)
        selection = _completed(selection, found.space)
        prunable = self._grouped(found, selection.space)
        entries = zip(prunable, selection.space.blocks, strict=True)
        space = HeadSpace(tuple(entry._replace(name=block.name) for block, entry in entries))
        renamed = dataclasses.replace(selection, space=space)
        cut(prunable, renamed.kept, Journal())
        for block, entry in zip(prunable, space.blocks, strict=True):
            # The record may not tell which neurons are left; as they stand is not the answer.
            mark: Cut = getattr(block.module, CUT)
            if not mark.whole:
                setattr(block.module, CUT, mark._replace(order=entry.order))
        self.known = prunable
        setattr(model, SELECTION, renamed)
        send_along(model, renamed)

    def _grouped(self, found: Prunable, space: HeadSpace) -> Prunable:
        """The blocks in the groups of the record. Paths differ between classes and releases; order, sizes
        and kinds do not."""
        try:
            prunable = found.grouped(space)
        except ValueError as error:
            raise RecordError(f"{self.blueprint.source} is of another model: {error}") from error
        mine = prunable.space
        if mine.kinds != space.kinds:
            raise RecordError(
                f"{self.blueprint.source} is of another model: it has {_shape(space.blocks)}, and the "
                f"configuration {_shape(mine.blocks)}."
            )
        return prunable

    def _blocks(self, model: nn.Module) -> Prunable:
        there: Prunable | None = None
        with suppress(AttributeError):  # a model of other modules
            if self.known is not None:
                there = self.known.at(model)
        if there is not None:
            return reread(there)
        space = self.blueprint.selection.space
        heads, neurons = bool(space.of_attention.any()), not bool(space.of_attention.all())
        return find_prunable(model, heads=heads, neurons=neurons, unit=space.unit)


def _completed(selection: Selection, space: HeadSpace) -> Selection:
    """The selection with those blocks whole that an earlier release did not understand and left alone."""
    own = {block.name: block for block in selection.space.blocks}
    if not own.keys() < {block.name for block in space.blocks}:
        return selection
    whole = HeadSpace(tuple(own.get(block.name, block) for block in space.blocks))
    units = {block.name: range(block.units) for block in whole.blocks}
    kept = whole.join({**units, **selection.space.split(selection.kept)})
    return Selection(whole, kept, provenance=selection.provenance, basis=selection.basis)


def _shape(blocks: tuple[Any, ...]) -> str:
    sizes = " ".join(str(b.units) for b in blocks)
    kinds = "/".join(sorted({b.unit.value for b in blocks}))
    return f"blocks of {sizes} {kinds}s"
