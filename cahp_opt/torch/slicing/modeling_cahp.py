"""The classes of a saved model that is pruned, for ``trust_remote_code=True``.

This file lies beside the weights of such a model, with the files that it imports from there, each as it is in the
package cahp-opt. It needs torch and transformers alone, and knows no architecture: a class of it is the
stock class of the same name, whose modules get the sizes that the configuration records once they are
built. Everything else (weights, dtype, devices, shards, generation) is done by transformers.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, cast

import transformers
from torch import nn

# Relative, because these files travel together; each is named here, because earlier releases of transformers take
# no others along.
from .argument_hooks import DropArgument, KeepHeads, argument_position
from .config_view import config_view
from .ghost_layers import adds_bias_alone as adds_bias_alone
from .rewritten_forward import OwnWidth, forward_of
from .skipped_attention import Bypass
from .skipped_neurons import skip_layers
from .width_rewriting import WIDTH, Words

ENTRY = "cahp_modules"
"""Name of the entry in the configuration: what is different from the stock class, module by module."""

NEEDS = "needs"
"""Key of the entry where that does not suffice: what the model needs cahp-opt for."""

NAME_OF_WEIGHTS = "transformers_weights"
"""The attribute of a configuration that names the file of the weights; it is never saved."""

_FOR_LOADER = ("attn_implementation", "dtype", "quantization_config", "torch_dtype")
_FOR_BOTH = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
"""Options of the loader that do not go to the configuration, and those that go to both."""


def __getattr__(name: str) -> Any:
    """The class ``name`` of transformers, with the sizes of its configuration's record."""
    if name.startswith("_"):
        raise AttributeError(name)
    return _pruned_class(name)


@cache
def _pruned_class(name: str) -> Any:
    stock: Any = getattr(transformers, name, None)
    if not (isinstance(stock, type) and issubclass(stock, transformers.PreTrainedModel)):
        raise AttributeError(
            f"the installed transformers {transformers.__version__} has no model of the name {name!r}"
        )
    generation: Any = transformers.GenerationMixin
    bases = (_Pruned, stock, *((generation,) if issubclass(stock, generation) else ()))
    return type(name, bases, {"__module__": __name__, "__doc__": stock.__doc__})


class _Pruned:
    """What the pruned class of any stock class adds to it."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        stock: Any = super()
        stock.__init__(config, *args, **kwargs)
        record: Any = getattr(config, ENTRY, None)
        if record:
            model: Any = self
            apply_record(model, record)

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: the modules are stock, and their checkpoints are converted as those of the stock class."""
        return False

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        """A model with new weights, which are saved under their usual name."""
        config = copy.deepcopy(config)
        record: dict[str, Any] = getattr(config, ENTRY, None) or {}
        record.pop("weights", None)
        stock: Any = super()
        return stock._from_config(config, **kwargs)

    # What transformers reads in the source of a class' module, it has to read in the stock class'.

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return bool(_stock(cls)._can_set_attn_implementation())

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return bool(_stock(cls)._can_set_experts_implementation())

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """Load the pruned model; see ``from_pretrained`` of transformers."""
        stock: Any = super()
        config, kwargs = own_config(cls, name, config, kwargs)
        record: dict[str, Any] = getattr(config, ENTRY, None) or {}
        if NEEDS in record:
            return _by_library(cls, name, record[NEEDS], config, kwargs)
        # Where stock code saves the model again, the weights have their usual name.
        weights = record.pop("weights", None)
        if weights is not None:
            setattr(config, NAME_OF_WEIGHTS, weights)
        loaded: Any = stock.from_pretrained(name, *args, config=config, **kwargs)
        model: Any = loaded[0] if kwargs.get("output_loading_info") else loaded
        cast("dict[str, Any]", vars(model.config)).pop(NAME_OF_WEIGHTS, None)
        if record:
            freeze(model, record)  # the loader makes every weight trainable
        return loaded


def own_config(
    cls: Any, source: Any, config: Any, options: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """A configuration that nobody else holds, and the options that are left for the loader of the weights.

    Args:
        cls: the class of the model.
        source: the folder or repository of the model.
        config: the configuration, or another place of it; None for that of ``source``.
        options: those of ``from_pretrained``.
    """
    rest = dict(options)
    if not isinstance(config, transformers.PretrainedConfig):
        held = {key: rest.pop(key) for key in _FOR_LOADER if key in rest}
        held |= {key: rest[key] for key in _FOR_BOTH if key in rest}
        config, rest = cls.config_class.from_pretrained(
            source if config is None else config, return_unused_kwargs=True, **rest
        )
        rest |= held
    return copy.deepcopy(config), rest


def _by_library(cls: Any, name: Any, why: str, config: Any, options: dict[str, Any]) -> Any:
    """Load with cahp-opt what the files beside the weights do not suffice for."""
    if importlib.util.find_spec("cahp_opt") is None:
        raise ImportError(
            f"{name} holds a pruned {cls.__name__} that needs more than transformers ({why}): "
            "`pip install cahp-opt`, and load it again."
        )
    library: Any = importlib.import_module("cahp_opt.torch")
    for key in ("_from_auto", "_commit_hash", "adapter_kwargs", "trust_remote_code"):
        options.pop(key, None)
    return library.from_pretrained(name, model_class=_stock(cls), config=config, **options)


def _stock(cls: type) -> Any:
    return getattr(transformers, cls.__name__)


def apply_record(model: nn.Module, record: Mapping[str, Any]) -> None:
    """Give the modules of a newly built stock model the sizes of a pruned one, in place.

    Args:
        model: an instance of the class that was saved, or of another class of the same model, with or
            without a head.
        record: the entry :data:`ENTRY` of its configuration.

    Raises:
        ImportError: if the model needs cahp-opt.
        ValueError: if the installed transformers builds the model otherwise than the one that saved it.
    """
    if NEEDS in record:
        raise ImportError(
            f"This pruned {record['architecture']} needs more than transformers ({record[NEEDS]}): "
            "`pip install cahp-opt`, and load it by `from_pretrained`."
        )
    places = dict(_places(model, record))
    for path, (module, change) in places.items():
        if module is None:
            places[path] = (_copied(model, record, path, change["copied"]), change)
    for path, (module, change) in places.items():
        why = _resized(module, change)
        if why:
            raise ValueError(_otherwise(model, record, f"{path} {why}"))
    # The form of what attention returns changes between releases.
    if record["transformers"] == transformers.__version__:
        _skip(model, record)


def freeze(model: nn.Module, record: Mapping[str, Any]) -> None:
    """Let nothing train the weights of blocks of which all units were removed: they only hold zeros."""
    for module, change in dict(_places(model, record)).values():
        for name in change.get("frozen", ()):
            weight: Any = getattr(module, name)
            if weight.is_floating_point():
                weight.requires_grad_(False)


def _places(
    model: nn.Module, record: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[Any, Mapping[str, Any]]]]:
    """Every path with the module there and its change; None for one that is to be copied.

    Raises:
        ValueError: if a module is not there, and it is not another class without that part of the model.
    """
    for path, number in record["modules"].items():
        change: Mapping[str, Any] = record["changes"][number]
        module = _at(model, path)
        if module is None and _known_place(model, path):
            if "copied" not in change:
                raise ValueError(_otherwise(model, record, f"{path} is not there"))
        elif module is None:
            if type(model).__name__ == record["architecture"]:
                raise ValueError(_otherwise(model, record, f"{path} is not there"))
            continue
        yield path, (module, change)


def _at(model: nn.Module, path: str) -> nn.Module | None:
    for root, inside in _ways(model, path):
        with suppress(AttributeError):
            return root.get_submodule(inside)
    return None


def _ways(model: Any, path: str) -> Iterator[tuple[nn.Module, str]]:
    """The ways to read a path of a class with or without a head, in one without or with it."""
    yield model, path
    prefix: str = getattr(model, "base_model_prefix", "")
    bare = path.removeprefix(f"{prefix}.") if prefix else path
    yield model, bare
    base: Any = getattr(model, prefix, None) if prefix else None
    if isinstance(base, nn.Module):
        yield base, bare


def _known_place(model: nn.Module, path: str) -> bool:
    """Whether the part of the model that a path leads into is there."""
    prefix = getattr(model, "base_model_prefix", "")
    bare = path.removeprefix(f"{prefix}.") if prefix else path
    first = bare.partition(".")[0]
    return any(hasattr(root, first) for root, _ in _ways(model, path))


def _copied(model: nn.Module, record: Mapping[str, Any], path: str, source: str) -> nn.Module:
    """Put a copy of the module at ``source`` where the stock class has none."""
    parent, _, name = path.rpartition(".")
    owner, original = _at(model, parent), _at(model, source)
    if owner is None or original is None:
        raise ValueError(_otherwise(model, record, f"{path} is not there"))
    copied = copy.deepcopy(original)
    setattr(owner, name, copied)
    return copied


def _resized(module: nn.Module, change: Mapping[str, Any]) -> str | None:
    """Change a module in place; why not, if it is another than the one that was saved."""
    numbers: Mapping[str, Any] = change.get("numbers", {})
    for name, (stock, _) in numbers.items():
        if plain(getattr(module, name, stock)) != stock:
            return f"has {name}={getattr(module, name)}, and it was {stock}"
    before = [stock for stock, _ in numbers.values() if not isinstance(stock, bool)]
    for name, value in whole_numbers(module).items():
        # A count under a name that was unknown would stay that of the model before pruning.
        if name not in change["known"] and not isinstance(value, bool) and value in before:
            return f"has a number {name} that it had not"
    for name, shape in change.get("shapes", {}).items():
        weight: Any = getattr(module, name, None)
        if (
            not isinstance(weight, nn.Parameter)
            or len(shape) != weight.ndim
            or any(size > most for size, most in zip(shape, weight.shape, strict=True))
        ):
            return f"has no {name} that could be cut to {shape}"
        part = weight.detach()[tuple(slice(size) for size in shape)]
        setattr(module, name, nn.Parameter(part.clone(), weight.requires_grad))
    for name, (_, value) in numbers.items():
        old: Any = getattr(module, name, value)
        setattr(module, name, type(old)(value) if isinstance(value, list) else value)
    _follow(module, change)
    for name in change.get("frozen", ()):
        module.get_parameter(name).requires_grad_(False)
    return None


def _follow(module: Any, change: Mapping[str, Any]) -> None:
    """Let arguments, forward and configuration of a module follow the heads that it has."""
    for name, heads in change.get("arguments", {}).items():
        position = argument_position(module, name)
        if position is not None:
            hook = KeepHeads(name, position, *heads) if heads else DropArgument(name, position)
            module.register_forward_pre_hook(hook, with_kwargs=True)
    if "width" in change:
        setattr(module, WIDTH, change["width"]["heads"])
        projections, out, heads, widths = change["width"]["words"]
        words = Words(tuple(projections), out, tuple(heads), tuple(widths))
        if forward_of(module.__class__, words) is not None:
            module.forward = OwnWidth(module, words)
    if "config" in change:
        module.config = config_view(module.config, change["config"])


def _skip(model: nn.Module, record: Mapping[str, Any]) -> None:
    """Let blocks without units return at once what they add, where the model that was saved did."""
    for path, facts in record.get("attention_skipped", {}).items():
        module: Any = _at(model, path)
        site = _at(model, facts["site"])
        if module is not None and site is not None:
            entries = facts["entries"] and tuple(facts["entries"])
            known = (facts["width"], entries, facts["cached"], facts["backend"])
            module.forward = Bypass(module, site, facts["out"], *known)
    for path, facts in record.get("neurons_skipped", {}).items():
        site = _at(model, path)
        if site is not None:
            sizes = {"stored": facts["stored"], "hidden": facts["hidden"]}
            skip_layers(site, facts["ins"], facts["out"], **sizes)


def whole_numbers(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module that are whole numbers, truth values or sequences of those, as in JSON."""
    found = {name: plain(value) for name, value in vars(module).items() if name != "training"}
    return {name: value for name, value in found.items() if value is not None}


def plain(value: object) -> Any:
    """A whole number or truth value as it is, a sequence of those as a list, and None for all else."""
    if isinstance(value, int):
        return value
    if isinstance(value, (list, tuple)):
        items = [plain(item) for item in cast("tuple[object, ...]", value)]
        return None if None in items else items
    return None


def _otherwise(model: nn.Module, record: Mapping[str, Any], why: str) -> str:
    return (
        f"The installed transformers {transformers.__version__} builds {type(model).__name__} in another way "
        f"than {record['transformers']}, which saved this pruned model: {why}. Install that release, or "
        "`pip install cahp-opt` and use `cahp_opt.torch.from_pretrained`."
    )
