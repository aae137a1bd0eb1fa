"""A pruned model as an ordinary folder, where its configuration can state the sizes that are left.

Such a configuration has one number of heads and one inner width for all layers. Whether its class builds the
pruned model from them is not looked up in a table: the class is asked to, without storage, and the shapes
are compared.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import transformers
from torch import Tensor, nn

from cahp_opt.files.folders import check_free, whole_folder
from cahp_opt.files.records import PathLike
from cahp_opt.space import Unit
from cahp_opt.torch.blocks.blocks import AttentionBlock, FeedForwardBlock, PrunableBlock
from cahp_opt.torch.blocks.feed_forward_layouts import INNER_WIDTHS
from cahp_opt.torch.blocks.finder import blocks_cut
from cahp_opt.torch.blocks.layouts import HEADS, KV_HEADS
from cahp_opt.torch.checkpoints.checkpoint import Saveable
from cahp_opt.torch.checkpoints.sentence_files import SentenceFiles
from cahp_opt.torch.export.refusals import ExportError
from cahp_opt.torch.running.batches import device_of
from cahp_opt.torch.running.trials import Trial, failure, make_trials
from cahp_opt.torch.running.undisturbed import evaluating

_HEADS = (*HEADS, "encoder_attention_heads", "decoder_attention_heads")
_WIDTHS = (
    *INNER_WIDTHS,
    "d_ff",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "ffn_dim",
    "ffn_hidden_size",
    "hidden_dim",
    "n_inner",
)

_OURS = "cahp_"
"""How the names of our entries in a configuration begin."""

B = TypeVar("B", bound=PrunableBlock)


def export_stock(
    model: nn.Module,
    directory: PathLike,
    *,
    tokenizer: Saveable | None = None,
    overwrite: bool = False,
    batch: object | None = None,
) -> None:
    """Write a pruned model as a folder that the stock loaders open, whole or not at all.

    Every layer must have kept the same number of heads and of neurons (see ``even`` of
    :class:`~cahp_opt.Budget`). The folder is opened again by the stock class, and its outputs must be equal to
    those of ``model``, bit for bit. The files of sentence-transformers go along as in
    :func:`~cahp_opt.torch.save_pretrained`.

    Args:
        model: a sliced transformers model; it is not changed.
        directory: the folder; new or empty.
        tokenizer: saved beside the model, if given.
        overwrite: replace a model that this library wrote there.
        batch: keyword arguments for the model to compare with; None for small random inputs.

    Raises:
        ExportError: if layers differ, the configuration's class cannot state the sizes, or the folder
            computes something else.
        FileExistsError: if the folder has content that may not be replaced.
        ValueError: if ``batch`` cannot be used, or none is given and none can be made.
    """
    config = stock_config(model)
    beside = SentenceFiles.of(model)
    if beside.note:
        warnings.warn(beside.note, stacklevel=2)
    check_free(Path(directory).resolve(), overwrite=overwrite)
    trials = [_whole(model, trial) for trial in make_trials(model, batch)]
    stock: Any = model
    with whole_folder(directory, overwrite=overwrite) as folder:
        stock.save_pretrained(str(folder))
        config.architectures = [type(model).__name__]
        config.save_pretrained(str(folder))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(folder))
        beside.write(folder)
        opened = _opened(model, str(folder))
        for trial in trials:
            _compare(model, opened, trial)


def stock_config(model: nn.Module) -> Any:
    """The configuration from which the class of a pruned model builds it.

    Raises:
        ExportError: if there is none.
    """
    if not isinstance(model, transformers.PreTrainedModel):
        raise ExportError(
            f"`model` is a {type(model).__name__}, which is not a transformers model."
        )
    prunable = blocks_cut(model)
    cut = [block for block in prunable if len(block.cut.kept) < block.cut.units]
    if not cut:
        raise ExportError(
            "`model` was not pruned; what it was loaded from is a stock folder already."
        )
    attention = prunable.attention if any(map(_is_attention, cut)) else ()
    feed_forward = () if all(map(_is_attention, cut)) else prunable.feed_forward
    _check_even(attention, lambda b: (b.heads, b.kv_heads, b.head_dim, b.key_dim), _heads)
    _check_even(feed_forward, lambda b: b.width, lambda b: f"{b.width} neurons")
    tried: list[str] = []
    for stated in (False, True):
        config = _adapted(model, attention[:1], feed_forward[:1], head_dim=stated)
        why = _misfit(model, config)
        if why is None:
            return config
        tried.append(why)
    raise ExportError(
        f"{type(model).__name__} cannot be a stock folder: {tried[0]}. Its configuration cannot state what was "
        "cut; keep the folder that `cahp prune` wrote."
    )


def _is_attention(block: PrunableBlock) -> bool:
    return block.unit.of_attention


def _heads(block: AttentionBlock) -> str:
    shared = f" on {block.kv_heads} key/value heads" if block.kv_heads != block.heads else ""
    return f"{block.heads} heads{shared}"


def _check_even(
    blocks: Sequence[B], sizes: Callable[[B], object], words: Callable[[B], str]
) -> None:
    """Refuse blocks of which one differs from the first, or kept nothing."""
    for block in blocks:
        if block.ghost:
            raise ExportError(
                f"{block.name} kept nothing, and a stock configuration cannot state that; prune again with "
                "`--even` and a `--minimum` of at least 1."
            )
        if sizes(block) != sizes(blocks[0]):
            raise ExportError(
                f"the layers differ: {block.name} has {words(block)}, and {blocks[0].name} has "
                f"{words(blocks[0])}. A stock configuration has one number for all layers; prune again with "
                "`--even`."
            )


def _adapted(
    model: Any,
    attention: Sequence[AttentionBlock],
    feed_forward: Sequence[FeedForwardBlock],
    *,
    head_dim: bool,
) -> Any:
    """The configuration with the numbers of these blocks, and without what this library put there."""
    config: Any = copy.deepcopy(model.config)
    held = cast("dict[str, Any]", vars(config))
    for name in [name for name in held if name.startswith(_OURS)]:
        del held[name]
    for block in attention:
        if head_dim:
            _set(config, ("head_dim",), None, block.head_dim, add=True)
        units, left = block.cut.units, len(block.cut.kept)
        shared = block.kv_heads != block.heads
        follows = block.unit is Unit.KV_GROUP or not shared
        _set(config, _HEADS, block.heads * units // left, block.heads)
        _set(
            config, KV_HEADS, block.kv_heads * units // (left if follows else units), block.kv_heads
        )
    for part in feed_forward:
        _set(config, _WIDTHS, part.width * part.cut.units // len(part.cut.kept), part.width)
    return config


def _set(
    config: Any, names: Sequence[str], old: int | None, new: int, *, add: bool = False
) -> None:
    """Set those attributes of a configuration that have the old value, or that are None."""
    for name in names:
        there: object = getattr(config, name, None)
        if (add or hasattr(config, name)) and there in (old, None):
            setattr(config, name, new)


def _misfit(model: nn.Module, config: Any) -> str | None:
    """Why the model's class does not build it from a configuration; None if it does."""
    cls: Any = type(model)
    try:
        # Made from plain values, as a loader makes it, which is where classes check their values.
        read = config.from_dict(config.to_dict())
        with torch.device("meta"):
            built: nn.Module = cls(read)
    except Exception as error:  # configurations raise anything over values that they do not expect
        told = " ".join(str(error).split())
        return f"{type(config).__name__} does not take the sizes that are left ({told.rstrip('.')})"
    makes = {name: list(weight.shape) for name, weight in built.state_dict().items()}
    has = {name: list(weight.shape) for name, weight in model.state_dict().items()}
    for name in (*has, *makes):
        if has.get(name) != makes.get(name):
            return (
                f"{name} is {has.get(name, 'absent')} in the pruned model, and {type(config).__name__} makes "
                f"it {makes.get(name, 'absent')} (many classes derive the width of a head from the hidden size)"
            )
    return None


def _whole(model: nn.Module, trial: Trial) -> Trial:
    """The same run with the model's head, if it runs so."""
    whole = Trial(trial.batch, bare=False)
    return whole if trial.bare and failure(model, whole) is None else trial


def _opened(model: nn.Module, folder: str) -> nn.Module:
    """The model that the stock class opens from a folder, beside the one that was written."""
    stock: Any = type(model)
    backend: object = getattr(model.config, "_attn_implementation", None)
    opened, info = stock.from_pretrained(
        folder, dtype="auto", attn_implementation=backend, output_loading_info=True
    )
    wrong = sorted([*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]])
    if wrong:
        raise ExportError(
            f"{stock.__name__} does not open what was written as it stands: it lacks or does not take "
            f"{', '.join(map(str, wrong[:4]))}."
        )
    return cast("nn.Module", opened.to(device_of(model)))


def _compare(model: nn.Module, opened: nn.Module, trial: Trial) -> None:
    """Refuse a model that differs from the one that was written, in anything."""
    with torch.no_grad(), evaluating(model, opened):
        expected, found = (_tensors(trial.part_of(m)(**trial.batch)) for m in (model, opened))
    for name, value in expected.items():
        other = found.get(name)
        if other is None or not torch.allclose(other, value, rtol=0, atol=0, equal_nan=True):
            raise ExportError(
                f"the folder, opened by {type(model).__name__}, gives other {name} than the pruned model; "
                "its configuration must mean something else there."
            )


def _tensors(output: Any) -> dict[str, Tensor]:
    return {name: value for name, value in output.items() if isinstance(value, Tensor)}
