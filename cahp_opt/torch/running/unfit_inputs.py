"""Inputs that a model would read otherwise than they are meant: refused, each with its way out."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, cast

from torch import Tensor, nn

from cahp_opt.torch.blocks.blocks import submodules

MASKS = ("attention_mask", "decoder_attention_mask")
_CACHES = ("past_key_values", "cache")
_POSITION_TABLES = ("position_embeddings", "position_embedding", "embed_positions", "wpe")


class MissingMaskWarning(UserWarning):
    """A batch looks padded and has no mask."""


def refuse_unfit_inputs(batch: Mapping[str, Any], model: nn.Module, argument: str) -> None:
    """Refuse inputs that would run and be wrong, or fail inside of the model's code.

    Args:
        batch: keyword arguments for the model, labels included.
        model: the model.
        argument: the name of the batch, for messages.

    Warns:
        MissingMaskWarning: if the ids look padded and there is no mask.

    Raises:
        ValueError: naming ``argument`` and the entry: for several choices per example where the model does
            not choose, a mask that is not ``[batch, tokens]`` of zeros and ones or that leaves an example
            without a token, a filled key/value cache, several texts packed into one row, more tokens than
            positions, or a number behind the table that it is looked up in.
    """
    for name in _CACHES:
        if batch.get(name) is not None:
            raise ValueError(
                f"`{argument}` holds a key/value cache (`{name}`), which every pass would add to; leave it "
                "out and give all tokens."
            )
    for prefix in ("", "decoder_"):
        _refuse_choices(batch, f"{prefix}input_ids", model, argument)
        _refuse_mask(batch, prefix, argument)
        _refuse_packed(batch, prefix, argument)
    _miss_mask(batch, model, argument)
    _refuse_behind_tables(batch, model, argument)


def padding_id(model: nn.Module) -> int | None:
    """The filler's id by the model's configuration; None if it states none."""
    found: object = getattr(_text_config(model), "pad_token_id", None)
    return found if isinstance(found, int) else None


def longest(model: nn.Module) -> int | None:
    """The most tokens that a text may have; None if the model sets no limit."""
    config = getattr(model, "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    for name, module in submodules(model):
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa and its kin count positions from behind the padding index.
            skipped = 0 if module.padding_idx is None else module.padding_idx + 1
            return positions - skipped
    return positions


def vocabulary_size(model: nn.Module) -> int | None:
    """The number of ids that the model can look up; None if unknown."""
    return next((t.num_embeddings for name, t in _tables(model) if name == "input_ids"), None)


def _text_config(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    with suppress(AttributeError, ValueError):  # several texts, or no configuration of transformers
        return config.get_text_config()
    return config


def chooses(model: nn.Module) -> bool:
    """Whether the model reads several choices per example, ``[batch, choices, tokens]``, and nothing
    else."""
    return type(model).__name__.endswith("ForMultipleChoice")


def _refuse_choices(batch: Mapping[str, Any], name: str, model: nn.Module, argument: str) -> None:
    ids = batch.get(name)
    if not isinstance(ids, Tensor) or chooses(model) == (ids.ndim == 3):
        return
    cls, shape = type(model).__name__, list(ids.shape)
    if ids.ndim == 3:
        raise ValueError(
            f"`{argument}` has `{name}` of shape {shape}, several choices per example, and a {cls} reads "
            "`[batch, tokens]`; give every choice as an example, or a model for multiple choice."
        )
    raise ValueError(
        f"`{argument}` has `{name}` of shape {shape}, and a {cls} reads several choices per example, "
        "`[batch, choices, tokens]`; give the choices of an example together."
    )


def _refuse_mask(batch: Mapping[str, Any], prefix: str, argument: str) -> None:
    name, ids = f"{prefix}attention_mask", batch.get(f"{prefix}input_ids")
    mask = batch.get(name)
    if mask is None:
        return
    if isinstance(mask, Tensor) and isinstance(ids, Tensor) and mask.shape == ids.shape:
        mask = mask.reshape(-1, mask.shape[-1])
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"`{argument}` has an attention mask of shape {shape}; it must be [batch, tokens], "
            "1 for real tokens and 0 for padding."
        )
    # A GPU is waited for once, not for every example.
    none, other = (mask == 0).all(dim=1).cpu(), mask[(mask != 0) & (mask != 1)].cpu()
    empty = [i for i, bare in enumerate(none) if bool(bare)]
    if empty:
        raise ValueError(
            f"`{argument}` has no real tokens in its examples {empty}; drop the empty texts."
        )
    if len(other):
        raise ValueError(
            f"`{argument}` has {other[0].item()} in its `{name}`, which must be 1 for real tokens and 0 for "
            "padding; models do not read the numbers of packed texts: give every text its own "
            "row."
        )


def _refuse_packed(batch: Mapping[str, Any], prefix: str, argument: str) -> None:
    """Texts in one row are one example here, and with a mask or a cache a model lets them read each other."""
    positions, mask = batch.get(f"{prefix}position_ids"), batch.get(f"{prefix}attention_mask")
    if not isinstance(positions, Tensor) or positions.ndim != 2 or positions.shape[1] < 2:
        return
    back = positions[:, 1:] < positions[:, :-1]
    if isinstance(mask, Tensor) and mask.shape[1] == positions.shape[1]:
        real = mask.to(positions.device) != 0
        back = back & real[:, 1:] & real[:, :-1]
    rows = [i for i, found in enumerate(back.any(dim=1).cpu()) if bool(found)]
    if rows:
        raise ValueError(
            f"`{argument}` has `{prefix}position_ids` that start again within its rows {rows}: several "
            "texts packed into one row, which would count as one example; give every text a row of its "
            "own, padded, with an `attention_mask`."
        )


def _miss_mask(batch: Mapping[str, Any], model: nn.Module, argument: str) -> None:
    """Some models are meant to read their padding, such as SigLIP; of the others it is an oversight."""
    ids, pad = batch.get("input_ids"), padding_id(model)
    if not isinstance(ids, Tensor) or ids.ndim != 2 or batch.get("attention_mask") is not None:
        return
    if pad is None or pad in _other_special_ids(model):  # then it may be a token of the text
        return
    filled = ((ids[:, -1] == pad) | (ids[:, 0] == pad)).cpu()
    rows = [i for i, found in enumerate(filled) if bool(found)]
    if rows:
        warnings.warn(
            f"`{argument}` has no `attention_mask`, and its examples {rows} begin or end with {pad}, the "
            "`pad_token_id` of the model: every token counts as real; pass the mask too, if it is padding.",
            MissingMaskWarning,
            stacklevel=2,
        )


def _other_special_ids(model: nn.Module) -> list[object]:
    config, found = _text_config(model), list[object]()
    for name in ("bos", "eos", "cls", "sep", "decoder_start", "forced_bos", "forced_eos"):
        value: object = getattr(config, f"{name}_token_id", None)
        found += cast("list[object]", value) if isinstance(value, list) else [value]
    return found


def _refuse_behind_tables(batch: Mapping[str, Any], model: nn.Module, argument: str) -> None:
    for name, table in _tables(model):
        ids = batch.get(name)
        if not isinstance(ids, Tensor) or not ids.numel() or ids.is_floating_point():
            continue
        low, high = int(ids.min()), int(ids.max())
        wrong = low if low < 0 else high
        if 0 <= wrong < table.num_embeddings or wrong in _placeholders(model):
            continue
        rows = [i for i, row in enumerate((ids == wrong).flatten(1).any(dim=1).cpu()) if bool(row)]
        way_out = "leave it out, or take the tokenizer of this model"
        if name.endswith("input_ids"):
            way_out = (
                "take the tokenizer of this model, or call `resize_token_embeddings` before pruning"
            )
        raise ValueError(
            f"`{argument}` has the id {wrong} in `{name}` of its examples {rows}, and the vocabulary of "
            f"this {type(model).__name__} has {table.num_embeddings} entries there, from 0; {way_out}."
        )
    _refuse_long(batch, model, argument)


def _refuse_long(batch: Mapping[str, Any], model: nn.Module, argument: str) -> None:
    """Tokens behind the last learned position."""
    most = longest(model)
    learned = [
        module
        for name, module in submodules(model)
        if name.rpartition(".")[2] in _POSITION_TABLES and isinstance(module, nn.Embedding)
    ]
    if most is None or not learned or hasattr(learned[0], "make_weight"):  # FSMT's table grows
        return
    # In these padding takes up no position.
    counts_real = learned[0].padding_idx is not None or (
        "attention_mask" in inspect.signature(type(learned[0]).forward).parameters
    )
    for prefix in ("", "decoder_"):
        ids, mask = batch.get(f"{prefix}input_ids"), batch.get(f"{prefix}attention_mask")
        if not isinstance(ids, Tensor) or ids.ndim not in (2, 3):
            continue
        length, positions = ids.shape[-1], batch.get(f"{prefix}position_ids")
        if isinstance(positions, Tensor) and positions.numel():
            last, entries = int(positions.max()), learned[0].num_embeddings
            if last >= entries:
                raise ValueError(
                    f"`{argument}` has the position {last} in its `{prefix}position_ids`, and this "
                    f"{type(model).__name__} has {entries} positions, from 0; truncate the texts."
                )
            continue
        if counts_real and isinstance(mask, Tensor):
            length = int((mask != 0).sum(dim=-1).max())
        if length > most:
            raise ValueError(
                f"`{argument}` has {length} tokens in a row of its `{prefix}input_ids`, and this "
                f"{type(model).__name__} has {most} positions; truncate the texts to `max_length={most}`."
            )


def _tables(model: nn.Module) -> Iterator[tuple[str, nn.Embedding]]:
    """By name of the input, the table that its numbers are looked up in, where that is known."""
    for prefix, part in (("", model), ("decoder_", _decoder(model))):
        table: object = None
        with suppress(AttributeError, NotImplementedError, TypeError):
            table = cast("Any", part).get_input_embeddings()
        # Subclasses may hold entries beside the table, as Idefics does.
        if isinstance(table, nn.Embedding) and not hasattr(table, "num_additional_embeddings"):
            yield f"{prefix}input_ids", table
    for name, module in submodules(model):
        if name.endswith("token_type_embeddings") and isinstance(module, nn.Embedding):
            yield "token_type_ids", module


def _decoder(model: nn.Module) -> object:
    with suppress(AttributeError, NotImplementedError, TypeError):
        return cast("Any", model).get_decoder()
    return None


def _placeholders(model: nn.Module) -> list[object]:
    """Ids that stand for images or sound, and that models replace before they look them up."""
    config: Any = getattr(model, "config", None)
    made = ("image", "video", "audio", "speech")
    names = [n for n in dir(config) if n.startswith(made) and n.endswith(("_id", "_index"))]
    return [getattr(config, name, None) for name in names]
