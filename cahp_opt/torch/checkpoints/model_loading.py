"""Loading models and tokenizers by name, for the command line.

The class that ``config.architectures`` names is loaded, with all weights of its checkpoint. Weights
that it does not take, or that would be random, end in an error.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import torch
import transformers
from torch import nn

from cahp_opt.files.belongings import some
from cahp_opt.runs.media import Medium
from cahp_opt.runs.names import Precision
from cahp_opt.stats.pooling import Pooling
from cahp_opt.torch.checkpoints.checkpoint import from_pretrained, is_sliced
from cahp_opt.torch.checkpoints.foreign_classes import own_class
from cahp_opt.torch.checkpoints.hub import is_hub_id, sliced_folder
from cahp_opt.torch.checkpoints.load_errors import (
    ADAPTER_FILE,
    ModelError,
    adapter_reason,
    explained,
    sentence_of,
)
from cahp_opt.torch.evaluation.fidelity import (
    Fidelity,
    PooledEmbedding,
    PoolingError,
    fidelity_of,
)
from cahp_opt.torch.evaluation.files_beside import MODULES_FILE, FilesBeside, OutOfReach
from cahp_opt.torch.running.main_input import main_input, medium_of, reads_decoder_ids, writes

__all__ = [
    "ModelError",
    "device_named",
    "foreign_code",
    "foreign_tokens",
    "load_model",
    "load_tokenizer",
    "output_of",
    "quiet",
    "refuse_other_medium",
]

_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")  # of transformers
_OTHER_TOWERS = ("vision_config", "audio_config")
_ONE_TOWER = ("ForImageClassification",)  # of models with two, this uses one alone
_SEVERAL_TEXTS = ("DoubleHeadsModel",)  # choices, and a place in each of them
_HEADED = re.compile(r"For[A-Z]")  # in the name of a class
_CONSTANTS = (".masked_bias",)  # of GPT-2, which earlier releases of transformers saved as weights


def quiet() -> None:
    """Keep advice and bars of transformers off the screen (downloads keep theirs); for the command
    line only."""
    models: Any = transformers.logging
    models.set_verbosity_error()
    models.disable_progress_bar()
    downloads: Any = huggingface_hub.logging
    downloads.set_verbosity_error()


def load_model(
    name: str,
    *,
    device: str | None = None,
    device_map: str | None = None,
    precision: Precision | None = None,
    leave_out: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> nn.Module:
    """A model of texts, images or sound with the head that its checkpoint has, in evaluation mode.

    Code that comes with a model is not run unasked.

    Args:
        name: a folder, also one of a sliced model or of sentence-transformers, or a hub id.
        device: the device; None for CUDA if there is one, otherwise the CPU.
        device_map: how transformers spreads the model over several devices, in place of ``device``: ``auto`` and
            the like, or one device; None for one device.
        precision: of the weights; None for float32 on the CPU and the checkpoint's own elsewhere.
        leave_out: modules of the checkpoint that its class does not take and that may be lost, such as
            ``cls.seq_relationship`` under a language model.
        trust_remote_code: run the code that comes with the model.

    Raises:
        ModelError: if it cannot be loaded whole but for ``leave_out``, or reads anything else, or several of
            them.
    """
    if device_map is not None:
        _check_map(device_map, device)
    where = device_named(device)
    dtype: torch.dtype | str = "auto" if where.type != "cpu" else torch.float32
    if precision is not None:
        dtype = getattr(torch, precision.value)
    name = _transformer_in(name)
    folder = _sliced_on_hub(name) if is_hub_id(name) else Path(name)
    if folder is not None and is_sliced(folder):
        if leave_out:
            raise ModelError(
                f"`--leave-out` does not apply to {name}, a sliced model, which is always loaded whole; "
                "leave the option out."
            )
        with explained(name, "the sliced model"):
            model = from_pretrained(
                folder, dtype=dtype, trust_remote_code=trust_remote_code, **_spread(device_map)
            )
    else:
        model = _load_whole(name, dtype, leave_out, trust_remote_code, _spread(device_map))
    _refuse_other_inputs(model, name)
    if device_map is not None:
        return cast("nn.Module", model).eval()
    try:
        return cast("nn.Module", model).to(where).eval()
    except (AssertionError, RuntimeError) as error:  # too little memory, above all
        raise ModelError(f"{name} cannot be put on {where}: {sentence_of(error)}") from None


def _check_map(device_map: str, device: str | None) -> None:
    """Refuse a device map that cannot be."""
    if device is not None:
        raise ModelError(
            f"`--device {device}` and `--device-map {device_map}` both say where the model goes; leave out one."
        )
    if find_spec("accelerate") is None:
        raise ModelError(
            f"`--device-map {device_map}` needs the package accelerate; install it, or name one device by `--device`."
        )
    if device_map not in _MAPS:
        device_named(device_map, "--device-map")


def _spread(device_map: str | None) -> dict[str, Any]:
    """The options of a loader."""
    return {} if device_map is None else {"device_map": device_map}


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer saved beside a model.

    Args:
        name: a folder or a hub id.
        trust_remote_code: run the code that comes with it.

    Raises:
        ModelError: if there is none that can be loaded.
    """
    name = _transformer_in(name)
    with explained(name, "the tokenizer"):
        tokenizers: Any = transformers.AutoTokenizer
        tokenizer = tokenizers.from_pretrained(
            name, local_files_only=Path(name).is_dir(), trust_remote_code=trust_remote_code
        )
        # Without files, some classes are made with their special tokens alone, and know no word.
        if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
            raise ValueError("it has no vocabulary; name a folder with the tokenizer's files")
        return tokenizer


def output_of(name: str, model: nn.Module, pooling: Pooling | None = None) -> Fidelity:
    """The fidelity of a model's output; ``pooling`` as for :func:`fidelity_of`.

    Raises:
        ModelError: for a head that no comparison is known for.
        PoolingError: for a pooling that does not fit the model, or cannot be done.
    """
    try:
        found = fidelity_of(model, pooling)
        # Some classes with a head are their own base, and would be judged by what lies below the head.
        if isinstance(found, PooledEmbedding) and _HEADED.search(type(model).__name__):
            raise ValueError("its head is not one that is known")
        return found
    except PoolingError:
        raise
    except ValueError:
        problem: object = getattr(getattr(model, "config", None), "problem_type", None)
        by = f" ({problem})" if problem else ""
        raise ModelError(
            f"{name} is a {type(model).__name__}{by}, whose outputs the command line cannot compare before and "
            "after; prune it in Python, with `cahp_opt.torch` and a `fidelity` of your own, or save it as a "
            "class with one head that it knows."
        ) from None


def foreign_code(name: str, model: nn.Module) -> list[str]:
    """A note if code came with a model; it did not run."""
    told: object = getattr(getattr(model, "config", None), "auto_map", None)
    return [_stands_in(f"the model {name}", model)] if told else []


def foreign_tokens(name: str, tokenizer: Any) -> list[str]:
    """A note if code came with a tokenizer; it did not run."""
    told: object = getattr(tokenizer, "init_kwargs", {}).get("auto_map")
    return [_stands_in(f"the tokenizer of {name}", tokenizer)] if told else []


def _stands_in(what: str, native: object) -> str:
    return (
        f"{what} comes with code of its own, which was not run; transformers' {type(native).__name__} "
        "stands in for it."
    )


def device_named(name: str | None, option: str = "--device") -> torch.device:
    """The device of this name; for None, CUDA if there is one, otherwise the CPU.

    Args:
        name: the name.
        option: what it was given as, for messages.

    Raises:
        ModelError: if it is not a device that this machine and its PyTorch can compute with.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelError(
            f"`{option}` must be a device such as cpu or cuda, got {name!r}."
        ) from None
    try:  # every absent device refuses in its own way, and `meta` has no numbers to give back
        torch.ones(1, device=device).sum().item()
    except (AssertionError, ImportError, RuntimeError) as error:
        here = "cuda or cpu" if torch.cuda.is_available() else "cpu"
        raise ModelError(
            f"`{option}` {name} cannot be computed with here ({sentence_of(error)[:80]}); name {here}, or "
            "leave the option out."
        ) from None
    return device


@contextmanager
def _same_numbers() -> Generator[None]:
    """The same random numbers every time, and the caller's undisturbed."""
    untyped: Any = torch
    with untyped.random.fork_rng(devices=[]):
        untyped.manual_seed(0)
        yield


def _load_whole(
    name: str,
    dtype: torch.dtype | str,
    leave_out: Sequence[str],
    trusted: bool,
    spread: Mapping[str, Any],
) -> nn.Module:
    local = Path(name).is_dir()
    if (Path(name) / ADAPTER_FILE).is_file():
        raise ModelError(f"{name} cannot be loaded: {adapter_reason(Path(name) / ADAPTER_FILE)}.")
    with explained(name, "the configuration"):
        configs: Any = transformers.AutoConfig
        config = configs.from_pretrained(name, local_files_only=local, trust_remote_code=trusted)
    _refuse_quantised(name, config)

    def load(cls: Any) -> tuple[nn.Module, dict[str, list[str]]]:
        # Weights that a checkpoint lacks, such as an unused pooler, are the same in every load: records
        # identify them.
        with explained(name, "the weights"), _same_numbers():
            model, found = cls.from_pretrained(
                name,
                config=config,
                dtype=dtype,
                local_files_only=local,
                trust_remote_code=trusted,
                output_loading_info=True,
                **spread,
                ignore_mismatched_sizes=True,  # told below: the stock error says it in a log only
            )
        keys = {
            kind: sorted(key if isinstance(key, str) else key[0] for key in found[f"{kind}_keys"])
            for kind in ("missing", "unexpected", "mismatched")
        }
        keys["unexpected"] = [key for key in keys["unexpected"] if not key.endswith(_CONSTANTS)]
        return model, keys

    with explained(name, "the code"):
        own = own_class(name) if trusted else None
    model, keys = load(own or _class(name, config))
    keys["unexpected"] = _without(name, model, keys["unexpected"], leave_out)
    if keys["missing"] or keys["unexpected"]:
        bare, bare_keys = load(transformers.AutoModel)
        if type(bare) is not type(model) and _fits(bare, bare_keys):
            # Embedders often keep the name of the class that they were trained from, without its head.
            if not _embeds_sentences(name):
                raise ModelError(
                    f"{name} is a {type(model).__name__} by the `architectures` of its config.json, and holds "
                    f"the weights of a {type(bare).__name__} without that head, which would be random; name "
                    f'the checkpoint with the head, or write "architectures": ["{type(bare).__name__}"] to '
                    "prune it without one."
                )
            model, keys = bare, bare_keys
    _refuse_adapted(name, model)
    _check_keys(name, model, keys, named=bool(config.architectures))
    return model


def _class(name: str, config: Any) -> Any:
    """The class that the configuration names; the one without a head if it names none."""
    told: Any = config.architectures
    if not told:
        return transformers.AutoModel
    named = told if isinstance(told, str) else str(told[0])
    cls: Any = getattr(transformers, named, None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        own = (
            " and the code that comes with the model is not run without `trust_remote_code`"
            if getattr(config, "auto_map", None)
            else ""
        )
        raise ModelError(
            f"{name} is a {named} by the `architectures` of its config.json, a class that the installed "
            f"transformers {transformers.__version__} does not have{own}; name a model of a class that it "
            "has, or load it in Python and use the functions of `cahp_opt.torch`."
        )
    made_for: Any = cls.config_class
    if made_for is not None and not isinstance(config, made_for):
        raise ModelError(
            f"{name} is a {named} by the `architectures` of its config.json, and a {config.model_type!r} by "
            f"its `model_type`, which do not go together; correct its config.json."
        )
    return cls


def _check_keys(name: str, model: nn.Module, keys: dict[str, list[str]], *, named: bool) -> None:
    cls = type(model).__name__
    if keys["mismatched"]:
        raise ModelError(
            f"{name} holds weights of other shapes than its config.json says, {some(keys['mismatched'], 3)}; "
            "restore the configuration that belongs to them."
        )
    if keys["unexpected"] and named:
        raise ModelError(
            f"{name} holds weights that a {cls}, as its config.json describes it, does not take, "
            f"{some(keys['unexpected'], 3)}, and they would be lost; correct `architectures` or the sizes in "
            f"its config.json, or prune it without them, by {_leaving_out(keys['unexpected'])}."
        )
    if keys["unexpected"]:
        raise ModelError(
            f"{name} has a config.json without `architectures`, and a {cls} does not take its weights "
            f"{some(keys['unexpected'], 3)}, which would be lost; add the class that was saved, such as "
            '"architectures": ["BertForSequenceClassification"].'
        )
    missing = _missing(model, keys["missing"])
    if missing:
        raise ModelError(
            f"{name} lacks the weights {some(missing, 3)} of a {cls}, so parts of the model would be random; "
            "name a complete checkpoint."
        )


def _without(name: str, model: nn.Module, keys: list[str], leave_out: Sequence[str]) -> list[str]:
    """The keys that are in none of the modules that may be lost."""
    for module in leave_out:
        if not any(_inside(key, module) for key in keys):
            raise ModelError(
                f"`--leave-out` {module} names nothing in {name} that a {type(model).__name__} does not take; "
                + (
                    f"what it does not take is {some(keys, 3)}."
                    if keys
                    else "leave the option out."
                )
            )
    return [key for key in keys if not any(_inside(key, module) for module in leave_out)]


def _inside(key: str, module: str) -> bool:
    return f"{key}.".startswith(f"{module}.")


def _leaving_out(keys: list[str]) -> str:
    """The options that leave these weights out."""
    modules = dict.fromkeys(key.rpartition(".")[0] or key for key in keys)
    outer = [m for m in modules if not any(_inside(m, o) for o in modules if o != m)]
    return f"`{' '.join(f'--leave-out {module}' for module in outer)}`"


def _fits(model: nn.Module, keys: dict[str, list[str]]) -> bool:
    return not (keys["unexpected"] or keys["mismatched"] or _missing(model, keys["missing"]))


def _missing(model: nn.Module, keys: Iterable[str]) -> list[str]:
    """The weights without which the model would answer at random.

    Encoders are often saved without the pooler that their class has. Nothing here uses it, unless a head
    does.
    """
    headless = getattr(model, "base_model", None) is model
    return [key for key in keys if not (headless and key.startswith("pooler."))]


def _embeds_sentences(name: str) -> bool:
    """Whether sentence-transformers, which loads the class without a head, saved it."""
    try:
        return FilesBeside.at(name).path(MODULES_FILE) is not None
    except OutOfReach:
        return False


def _transformer_in(name: str) -> str:
    """The folder of the model itself, in a folder of sentence-transformers that has it as a module, such as
    ``0_Transformer``; any other name as it is.

    Raises:
        ModelError: if that module is not a model of transformers.
    """
    folder, beside = Path(name), FilesBeside(name)
    inner = beside.first_folder()
    first = next(iter(beside.modules() or ()), None) if inner else None
    if first is None:
        return name
    if first.is_transformer:
        return str(folder / inner)
    if (folder / "config.json").is_file():
        return name
    raise ModelError(
        f"{name} cannot be loaded: the first module that its {MODULES_FILE} lists, {inner}, is a "
        f"{first.kind}, and not a Transformer that could be pruned; name the folder of a transformers model."
    )


def _sliced_on_hub(name: str) -> Path | None:
    """The folder of a sliced model of the hub; None for another model, or if the hub does not answer."""
    found = _file_of(name, "config.json")
    if found is None or not is_sliced(found.parent):
        return None
    return sliced_folder(name)


def _file_of(name: str, file: str) -> Path | None:
    """A file of a folder or of the hub; None if it is not there, or cannot be had."""
    helpers: Any = transformers.utils  # which does not list what it exports
    try:
        found: str | None = helpers.cached_file(
            name,
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
    except OSError:
        return None
    return Path(found) if found else None


def _refuse_quantised(name: str, config: Any) -> None:
    told: Any = getattr(config, "quantization_config", None)
    if told is None:
        return
    as_dict: Any = getattr(told, "to_dict", lambda: told)
    method: object = as_dict().get("quant_method")
    by = f" ({getattr(method, 'value', method)})" if method else ""
    raise ModelError(
        f"{name} is quantised{by}, and heads can only be cut out of weights as they were trained; prune the "
        "model that was quantised, and quantise the pruned one."
    )


def _refuse_adapted(name: str, model: nn.Module) -> None:
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            f"{name} holds an adapter, which the command line would not save; merge it first and name the "
            "merged model."
        )


def refuse_other_medium(name: str, model: nn.Module, given: Medium) -> None:
    """Refuse a model that reads something else than is given.

    Raises:
        ModelError: naming the option that it wants.
    """
    reads = medium_of(model)
    if reads is not None and reads is not given:
        raise ModelError(
            f"{name} is a {type(model).__name__}, which reads {reads.value}; give them as {reads.option}, in "
            f"place of {given.option}."
        )


def _refuse_other_inputs(model: nn.Module, name: str) -> None:
    """Refuse a model that reads anything but one text, image or sound per example."""
    cls, config, medium = type(model).__name__, getattr(model, "config", None), medium_of(model)
    towers = any(getattr(config, part, None) is not None for part in _OTHER_TOWERS)
    if medium is None:
        reads = f"`{main_input(model)}`"
    elif towers and not cls.endswith(_ONE_TOWER):
        reads = "more than texts" if medium is Medium.TEXT else f"more than {medium.value}"
    elif medium is not Medium.TEXT and reads_decoder_ids(model) and not writes(model):
        reads = f"{medium.value} and the tokens of a decoder"
    elif "Video" in cls:
        reads = "videos"
    elif "bbox" in inspect.signature(type(model).forward).parameters:
        reads = "texts and their places on a page"
    elif cls.endswith(_SEVERAL_TEXTS):
        reads = "several texts per example"
    else:
        return
    raise ModelError(
        f"{name} is a {cls}, which reads {reads}, and the command line takes texts, images or recordings only, one "
        "of them; prune it in Python, with `cahp_opt.torch` and batches of your own."
    )
