"""How a model embeds texts, according to the files of sentence-transformers beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from torch import Tensor, nn

from cahp_opt.stats.pooling import Pooling, recorded_pooling
from cahp_opt.torch.slicing.slicing import label_of

_MODULES, _PROMPTS = "modules.json", "config_sentence_transformers.json"
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
_HARMLESS = ("Transformer", "Normalize", "Dropout")  # nothing that changes a direction


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
    config = getattr(model, "config", None)
    name: object = getattr(config, "_name_or_path", None)
    if not isinstance(name, str) or not name:
        return Embedder()
    return _read(_Files(name, getattr(config, "_commit_hash", None)))


@dataclass(frozen=True)
class _Files:
    """The files beside a model.

    Args:
        name: a folder or a hub id.
        revision: of the repository; None for the newest.
    """

    name: str
    revision: str | None

    def read(self, file: str) -> Any:
        """The content of a JSON file; None if it is not there.

        Raises:
            _OutOfReach: if that cannot be known.
        """
        path = self._path(file)
        return None if path is None else json.loads(path.read_text(encoding="utf-8"))

    def _path(self, file: str) -> Path | None:
        folder = Path(self.name)
        if folder.is_dir():
            return folder / file if (folder / file).is_file() else None
        try:
            cached = huggingface_hub.try_to_load_from_cache(self.name, file, revision=self.revision)
            if isinstance(cached, str):
                return Path(cached)
            if cached is not None:  # known not to be there
                return None
            hub: Any = huggingface_hub
            return Path(hub.hf_hub_download(self.name, file, revision=self.revision))
        except HFValidationError:  # a folder that is gone
            return None
        except LocalEntryNotFoundError:  # which is an EntryNotFoundError too
            raise _OutOfReach from None
        except EntryNotFoundError:
            return None
        except (HfHubHTTPError, OSError):
            raise _OutOfReach from None


class _OutOfReach(Exception):
    """A repository cannot be asked for a file."""


def _read(files: _Files) -> Embedder:
    try:
        modules = files.read(_MODULES)
        if modules is None:
            found = files.read(f"{_FIRST_FOLDER}/config.json")
            return Embedder() if found is None else _of_pooling(files, found)
        paths = list[str]()
        for module in modules:
            kind = str(module["type"]).rsplit(".", 1)[-1]
            if kind == "Pooling":
                paths.append(str(module["path"]))
            elif kind not in _HARMLESS:
                return _unknown(files, f"puts a module of the type {kind} into the embedding")
        if len(paths) != 1:
            return _unknown(files, f"names {len(paths)} modules that pool")
        found = files.read(f"{paths[0]}/config.json" if paths[0] else "config.json")
        return (
            _unknown(files, "lacks its configuration")
            if found is None
            else _of_pooling(files, found)
        )
    except _OutOfReach:
        note = (
            f"the pooling of {files.name} could not be looked up, so the mean over all tokens is taken; "
            "give the pooling if it is another."
        )
        return Embedder(notes=(note,))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return Embedder(
            problem=f"the files that state the pooling of {files.name} cannot be understood ({error!r})"
        )


def _of_pooling(files: _Files, config: Mapping[str, Any]) -> Embedder:
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
    return Embedder(_NAMES[names[0]], notes=_prompts(files, config))


def _prompts(files: _Files, config: Mapping[str, Any]) -> tuple[str, ...]:
    told: Any = files.read(_PROMPTS)
    given = cast("Mapping[str, Any]", told).get("prompts") if isinstance(told, Mapping) else None
    prompts = cast("Mapping[str, Any]", given or {})
    named = [name for name, text in prompts.items() if text]
    if not named:
        return ()
    kept = "" if config.get("include_prompt", True) else ", and leaves them out of the embedding"
    return (
        f"{files.name} puts the prompts {', '.join(named)} before texts{kept}; nothing puts them there "
        "here, so give texts that begin with them.",
    )


def _unknown(files: _Files, what: str) -> Embedder:
    return Embedder(problem=f"the pooling of {files.name} {what}, which cannot be done here")
