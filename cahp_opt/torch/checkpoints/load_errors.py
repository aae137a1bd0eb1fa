"""Why a model cannot be loaded by its name, as one sentence: what the hub says, and what is damaged."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import transformers
from huggingface_hub import errors

from cahp_opt.torch.evaluation.files_beside import of_network

ADAPTER_FILE = "adapter_config.json"
_OBJECTS = ("config", "tokenizer", "special_tokens_map", "generation_config", ADAPTER_FILE)
_LONG = 200  # characters; a line that is longer is cut to its first sentence
_OWN_CODE = (
    "it comes with code of its own, which is not run unasked; if you trust it, pass "
    "`trust_remote_code=True`"
)


class ModelError(ValueError):
    """A model or its tokenizer cannot be loaded; the sentence says why."""


def sentence_of(error: BaseException) -> str:
    """The beginning of an error's text, with its class if that says more than the text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    while len(lines) > 1 and lines[0].endswith(":"):
        lines[:2] = [f"{lines[0]} {lines[1]}"]
    told = lines[0] if lines else ""
    if len(told) > _LONG:
        told = told.partition(". ")[0]
    if told and isinstance(error, (ValueError, OSError, RuntimeError, AssertionError)):
        return told
    return f"{type(error).__name__}: {told}" if told else type(error).__name__


@contextmanager
def explained(name: str, part: str) -> Generator[None, None, None]:
    """Turn errors of transformers into one sentence.

    Damaged files end in errors of nearly every class, and none of the code in here is this
    library's.

    Args:
        name: a folder or a hub id.
        part: what of it is being loaded.
    """
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith("cahp_opt."):
            raise  # a sentence already
        why = _why(name, error)
        raise ModelError(f"{part} of {name} cannot be loaded: {why.rstrip('.')}.") from error


def _why(name: str, error: Exception) -> str:
    folder = Path(name)
    if isinstance(error, ImportError):
        return sentence_of(error)
    if "custom code" in str(error) or "trust_remote_code" in str(error):
        return _OWN_CODE
    if folder.is_dir():
        return _why_folder(folder, error)
    if folder.exists():
        return "it is a file, and a folder or a hub id is expected"
    return _why_hub(name, error)


# -- folders ---------------------------------------------------------------------------------------


def _why_folder(folder: Path, error: Exception) -> str:
    if not (folder / "config.json").is_file():
        if (folder / ADAPTER_FILE).is_file():
            return adapter_reason(folder / ADAPTER_FILE)
        return "it has no config.json; name the folder of a transformers model"
    damage = next(_damages(folder), None)
    if damage is not None:
        return damage
    if isinstance(error, ValueError) and "model type" in str(error):
        return _unknown_type(_read(folder / "config.json").get("model_type"))
    if "backend tokenizer" in str(error):
        settings = folder / "tokenizer_config.json"
        if settings.is_file() and _read(settings).get("auto_map"):
            return _OWN_CODE
        return "it has no tokenizer's files (such as tokenizer.json); save the tokenizer beside the model"
    if "no file named" in str(error):
        return "its weights lack the file that names the parts (model.safetensors.index.json)"
    return sentence_of(error)


def _unknown_type(model_type: object) -> str:
    """The reason for a model type that transformers does not have."""
    return (
        f"its model type {model_type!r} is unknown to the installed transformers "
        f"{transformers.__version__}; name a model of a type that it knows"
    )


def adapter_reason(path: Path) -> str:
    """The reason for a folder of an adapter, from its configuration."""
    try:
        base = _read(path).get("base_model_name_or_path")
    except ValueError:
        base = None
    of = f" of {base}" if base else ""
    return (
        f"it is an adapter{of}, not a whole model; merge it first (peft's `merge_and_unload()`, then "
        "`save_pretrained`) and name the merged model"
    )


def _damages(folder: Path) -> Iterator[str]:
    """Damage to the files of a folder that shows without loading them."""
    for path in sorted(folder.glob("*.json")):
        try:  # others, such as sentence-transformers' modules.json, may hold a list
            (_read if path.name.startswith(_OBJECTS) or ".index." in path.name else _parsed)(path)
        except ValueError:
            yield f"{path.name} is damaged (no whole JSON object); restore this file"
    for index in sorted(folder.glob("*.index.json")):
        shards: object = _read(index).get("weight_map")
        named = cast("dict[str, str]", shards).values() if isinstance(shards, dict) else ()
        missing = sorted(shard for shard in set(named) if not (folder / shard).is_file())
        if missing:
            yield (f"the shard {missing[0]} that {index.name} names is missing; restore this file")
    for path in sorted(folder.glob("*.safetensors")):
        if not _is_whole(path):
            yield f"{path.name} is damaged (cut off, or no safetensors file); restore this file"
    if not any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "*.bin")):
        yield "it has no weights (model.safetensors); name the folder of a whole model"


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file's header can be read and all its bytes are there."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            return True
    except (SafetensorError, OSError):
        return False


def _parsed(path: Path) -> object:
    """The JSON of a file.

    Raises:
        ValueError: if there is none in it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _read(path: Path) -> dict[str, Any]:
    """A JSON object of a file.

    Raises:
        ValueError: if there is none in it.
    """
    found = _parsed(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object")
    return cast("dict[str, Any]", found)


# -- the hub ---------------------------------------------------------------------------------------


def _why_hub(name: str, error: Exception) -> str:
    """From the errors below what transformers raised, the most telling one."""
    chain = list(_chain(error))

    def found(*kinds: type[BaseException]) -> BaseException | None:
        return next((e for e in chain if isinstance(e, kinds)), None)

    nowhere = "there is no such folder, and "
    if found(errors.GatedRepoError):
        return (
            "it is gated on the hub; ask for access on its page, then log in with `hf auth login`"
        )
    unknown = found(errors.RepositoryNotFoundError)
    if unknown is not None:
        if _logged_in(unknown):
            return (
                f"{nowhere}the hub shows no such model to this account; check the name, and for a private one "
                "ask its owner for access"
            )
        return (
            f"{nowhere}the hub shows no such model; check the name, and for a private one log in with "
            "`hf auth login`"
        )
    if found(errors.RevisionNotFoundError):
        return "it has no such revision on the hub; name a branch, a tag or a commit of it"
    refused = found(errors.HfHubHTTPError)
    if refused is not None and not isinstance(refused, errors.EntryNotFoundError):
        return _why_status(refused)
    if found(errors.HFValidationError):
        return f"{nowhere}a hub id has the form `owner/name`; check the name"
    offline = found(errors.OfflineModeIsEnabled) is not None or is_offline()
    if offline and found(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        return (
            f"{nowhere}it has not been downloaded, and HF_HUB_OFFLINE forbids to do so; check the name, or "
            "unset HF_HUB_OFFLINE"
        )
    if _unreached(chain) or found(errors.LocalEntryNotFoundError):
        return (
            f"{nowhere}it has not been downloaded, and the hub cannot be reached; check the name and the "
            "connection"
        )
    text = str(error)
    if "config.json" in text:  # the repository is there, and this file is not in it
        adapter = _hub_adapter(name)
        return adapter or "it has no config.json; name a transformers model"
    if isinstance(error, ValueError) and "model type" in text:
        return text.partition(". ")[0].strip() or sentence_of(error)
    return sentence_of(error)


def why_not_pushed(error: Exception) -> str:
    """Why the hub did not take a model, without a full stop."""
    chain = list(_chain(error))
    if is_offline() or any(isinstance(e, errors.OfflineModeIsEnabled) for e in chain):
        return "HF_HUB_OFFLINE forbids to use the network; unset it"
    if any(isinstance(e, errors.HFValidationError) for e in chain):
        return "a hub id has the form `owner/name`; check the name"
    if any(isinstance(e, errors.RevisionNotFoundError) for e in chain):
        return "it has no such revision; make the branch first, or leave `revision` out"
    refused = next((e for e in chain if isinstance(e, errors.HfHubHTTPError)), None)
    status: object = getattr(getattr(refused, "response", None), "status_code", None)
    if status == 401 or any(isinstance(e, errors.LocalTokenNotFoundError) for e in chain):
        return "nobody is logged in, or the token is not valid; log in with `hf auth login`, or pass `token`"
    if status in (403, 404):
        return (
            f"this account may not write there ({status}); name a repository of your own, or pass a `token` "
            "that may write"
        )
    if refused is not None and status is not None:
        return _why_status(refused)
    return (
        "the hub cannot be reached; check the connection"
        if _unreached(chain)
        else sentence_of(error)
    )


def _unreached(chain: Sequence[BaseException]) -> bool:
    """Whether one of these errors is about the network."""
    return any(map(of_network, chain))


def _logged_in(error: BaseException) -> bool:
    """Whether the request that was refused named an account."""
    request: Any = getattr(getattr(error, "response", None), "request", None)
    headers: Any = getattr(request, "headers", None) or {}
    return any(str(name).lower() == "authorization" for name in headers)


def _why_status(error: BaseException) -> str:
    status: object = getattr(getattr(error, "response", None), "status_code", None)
    if status == 429:
        return "the hub limits the rate of requests (429); wait a while, or log in with `hf auth login`"
    if status in (401, 403):
        return (
            f"the hub refuses access ({status}); log in with `hf auth login` and an account that may "
            "read it"
        )
    if isinstance(status, int) and status >= 500:
        return f"the hub fails ({status}); try again later"
    return f"the hub refuses ({status}): {sentence_of(error)}"


def is_offline() -> bool:
    """Whether huggingface_hub was told not to use the network."""
    return bool(huggingface_hub.constants.HF_HUB_OFFLINE)


def _hub_adapter(name: str) -> str | None:
    """The reason if a repository holds an adapter; None if not, or if that cannot be told."""
    helpers: Any = transformers.utils  # which does not list what it exports
    try:
        path: str | None = helpers.find_adapter_config_file(name)
    except OSError:
        return None
    return adapter_reason(Path(path)) if path else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen = list[BaseException]()
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        yield current
        current = current.__cause__ or current.__context__
