"""How a model embeds texts, according to the files of sentence-transformers beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from cahp_opt.stats.pooling import Pooling, recorded_pooling
from cahp_opt.torch.evaluation.files_beside import (
    READING_FILES,
    SETTINGS_FILE,
    FilesBeside,
    Module,
    OutOfReach,
)
from cahp_opt.torch.slicing.slicing import label_of

_FIRST_FOLDER = "1_Pooling"  # where the configuration is in folders without a list of modules
_NAMES = {
    "cls": Pooling.CLS,
    "max": Pooling.MAX,
    "mean": Pooling.MEAN,
    "mean_sqrt_len_tokens": Pooling.MEAN_SQRT_LEN,
    "weightedmean": Pooling.WEIGHTED_MEAN,
    "lasttoken": Pooling.LAST,
}
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_HARMLESS = ("Normalize", "Dropout")  # behind the pooling nothing that changes a direction


@dataclass(frozen=True)
class Embedder:
    """How a model embeds texts, as the files beside it state.

    Args:
        pooling: the pooling they state; None if they state none, or one that cannot be done here.
        problem: why it cannot be done here; empty if it can.
        notes: sentences on what else they state and is not done here.
    """

    pooling: Pooling | None = None
    problem: str = ""
    notes: tuple[str, ...] = ()


def pooled(hidden: Tensor, real: Tensor, pooling: Pooling) -> Tensor:
    """Embeddings ``[batch, width]``.

    Args:
        hidden: last hidden states, ``[batch, tokens, width]``.
        real: which tokens are not padding, bool ``[batch, tokens]``, at least one per text.
        pooling: how to pool.
    """
    if pooling.reads_one_token:
        flags = real.int()
        first = flags.argmax(dim=1)
        last = real.shape[1] - 1 - flags.flip(1).argmax(dim=1)
        place = first if pooling is Pooling.CLS else last
        return hidden.gather(1, place[:, None, None].expand(-1, 1, hidden.shape[2])).squeeze(1)
    if pooling is Pooling.MAX:
        return hidden.masked_fill(~real[..., None], float("-inf")).amax(dim=1)
    weights = real.to(hidden.dtype)
    if pooling is Pooling.WEIGHTED_MEAN:
        weights = weights.cumsum(dim=1) * weights
    total = weights.sum(dim=1, keepdim=True)
    if pooling is Pooling.MEAN_SQRT_LEN:
        total = total.sqrt()
    # Padding may hold NaN, which a weight of 0 would not keep out.
    rows = hidden.masked_fill(~real[..., None], 0)
    return (rows * weights[..., None]).sum(dim=1) / total


def embedder_of(model: nn.Module) -> Embedder:
    """How a model embeds texts.

    A sliced model's selection states it; for other models, the files of sentence-transformers in
    the folder or the repository that the model was loaded from, which are fetched if they are
    missing.
    """
    selection = label_of(model)
    recorded = None if selection is None else recorded_pooling(selection.provenance)
    if recorded is not None:
        return Embedder(recorded)
    files = FilesBeside.of(model)
    return Embedder() if files is None else _read(files)


def _read(files: FilesBeside) -> Embedder:
    try:
        modules = files.modules()
        if modules is None:
            found = files.read(f"{_FIRST_FOLDER}/config.json")
            return Embedder() if found is None else _of_pooling(files, found, "")
        pools = list[Module]()
        for number, module in enumerate(modules):
            if module.kind == "Pooling":
                pools.append(module)
            elif not (module.is_transformer if number == 0 else pools and module.kind in _HARMLESS):
                return _unknown(
                    files, f"puts a module of the type {module.kind} into the embedding"
                )
        if len(pools) != 1:
            return _unknown(files, f"names {len(pools)} modules that pool")
        found = files.read(_in(pools[0].path, "config.json"))
        return (
            _unknown(files, "lacks its configuration")
            if found is None
            else _of_pooling(files, found, modules[0].path)
        )
    except OutOfReach:
        note = (
            f"the pooling of {files.name} could not be looked up, so the mean over all tokens is taken; "
            "give the pooling if it is another."
        )
        return Embedder(notes=(note,))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return Embedder(
            problem=f"the files that state the pooling of {files.name} cannot be understood ({error!r})"
        )


def _of_pooling(files: FilesBeside, config: Mapping[str, Any], reader: str) -> Embedder:
    given: Any = config.get("pooling_mode")
    if given is None:
        given = [name for flag, name in _FLAGS.items() if config.get(flag)] or ["mean"]
        unknown = [
            key
            for key, value in config.items()
            if key.startswith("pooling_mode_") and value is True and key not in _FLAGS
        ]
        given = [*given, *unknown] if unknown else given
    names = [given] if isinstance(given, str) else [str(name) for name in given]
    if len(names) != 1 or names[0] not in _NAMES:
        return _unknown(files, f"pools by {' and '.join(names)}")
    try:
        notes = [_prompts(files, config), _lower_case(files, reader)]
    except OutOfReach:
        notes = [f"the prompts of {files.name} could not be looked up."]
    return Embedder(_NAMES[names[0]], notes=tuple(note for note in notes if note))


def _prompts(files: FilesBeside, config: Mapping[str, Any]) -> str:
    """A sentence on the prompts that sentence-transformers puts before texts; empty without any."""
    told: Any = files.read(SETTINGS_FILE)
    given = cast("Mapping[str, Any]", told).get("prompts") if isinstance(told, Mapping) else None
    prompts = cast("Mapping[str, Any]", given or {})
    named = [name for name, text in prompts.items() if text]
    if not named:
        return ""
    kept = "" if config.get("include_prompt", True) else ", and leaves them out of the embedding"
    return (
        f"{files.name} puts the prompts {', '.join(named)} before texts{kept}; nothing puts them there "
        "here, so give texts that begin with them."
    )


def _lower_case(files: FilesBeside, folder: str) -> str:
    """A sentence if sentence-transformers gives a model its texts in lower case; empty if not."""
    told = (files.read(_in(folder, file)) for file in READING_FILES)
    found: Any = next((each for each in told if each), None)
    if not (isinstance(found, Mapping) and cast("Mapping[str, Any]", found).get("do_lower_case")):
        return ""
    return (
        f"sentence-transformers gives {files.name} its texts in lower case; nothing does so here, so give "
        "texts that are."
    )


def _in(folder: str, file: str) -> str:
    return f"{folder}/{file}" if folder else file


def _unknown(files: FilesBeside, what: str) -> Embedder:
    return Embedder(problem=f"the pooling of {files.name} {what}, which cannot be done here")
