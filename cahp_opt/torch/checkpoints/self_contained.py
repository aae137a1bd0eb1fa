"""What makes a saved folder load without this library: a modelling file, and a record of what it changes.

The configuration names the file for every Auto class that takes the model (``auto_map``), and holds how the modules
of the sliced model differ from those of its stock class (see :mod:`cahp_opt.torch.checkpoints.module_record`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import transformers
from transformers.models.auto import modeling_auto

from cahp_opt.torch.checkpoints.weight_files import weights_in
from cahp_opt.torch.slicing import (
    argument_hooks,
    config_view,
    ghost_layers,
    modeling_cahp,
    rewritten_forward,
    skipped_attention,
    skipped_neurons,
    width_rewriting,
)
from cahp_opt.torch.slicing.modeling_cahp import ENTRY

_MODULES = (
    *(modeling_cahp, argument_hooks, config_view),
    *(ghost_layers, skipped_attention, skipped_neurons),
    *(rewritten_forward, width_rewriting),
)
FILES = tuple(Path(str(module.__file__)) for module in _MODULES)
"""The modelling file and those that it imports from beside it."""

_MODULE = FILES[0].stem
_MAP = "auto_map"
_LAST = (
    *("AutoModelForMaskedLM", "AutoModelForMultimodalLM", "AutoModelForPreTraining"),
    "AutoModelWithLMHead",
)
"""Auto classes that say less than another one, where that makes the same model."""


def make_self_contained(folder: Path, record: dict[str, Any]) -> None:
    """Put the modelling file into a folder, and the record of what it changes into its configuration.

    Args:
        folder: the folder of a saved model.
        record: of the model, from :func:`~cahp_opt.torch.checkpoints.module_record.record_of`.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    weights = weights_in(folder)
    assert weights is not None
    cls: Any = getattr(transformers, record["architecture"])
    config[ENTRY] = {**record, "weights": weights[0]}
    # Code that came with the original was not run, stayed there, and would not know what was removed.
    config[_MAP] = _auto_map(cls)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for source in FILES:
        shutil.copyfile(source, folder / source.name)


def auto_class(cls: type) -> str | None:
    """The Auto class of transformers that makes a saved model of this class; None if there is none."""
    mine = [auto for auto, name in _auto_map(cls).items() if name == f"{_MODULE}.{cls.__name__}"]
    others = [auto for auto in mine if auto not in _LAST]
    return next(iter((*others, *(auto for auto in _LAST if auto in mine))), None)


def forget(config: Any) -> None:
    """Take out of a loaded configuration what is about the files in the folder, which stay there."""
    held = cast("dict[str, Any]", vars(config))
    held.pop(ENTRY, None)
    named: object = getattr(config, _MAP, None)
    if isinstance(named, dict):
        pairs = cast("dict[str, Any]", named).items()
        others = {auto: name for auto, name in pairs if f"{_MODULE}." not in str(name)}
        if others:
            setattr(config, _MAP, others)
        else:
            delattr(config, _MAP)


def _auto_map(cls: Any) -> dict[str, str]:
    """What every Auto class makes of the configuration of a model class; the class itself where it can."""
    found: dict[str, str] = {"AutoModel": cls.__name__}
    for auto, names in _takers(cls.config_class):
        found[auto] = cls.__name__ if cls.__name__ in names else names[0]
    return {auto: f"{_MODULE}.{name}" for auto, name in found.items()}


def _takers(config: type) -> Iterator[tuple[str, list[str]]]:
    """The Auto classes that take a class of configurations, and the names of what they make of it."""
    for name, auto in sorted(vars(modeling_auto).items()):
        mapping: Any = getattr(auto, "_model_mapping", None)
        if not name.startswith("AutoModel") or mapping is None or config not in mapping:
            continue
        names = [str(c.__name__) for c in _types(mapping[config]) if _is_exported(c, config)]
        if names:
            yield name, names


def _types(made: object) -> tuple[Any, ...]:
    return tuple(cast("tuple[Any, ...]", made)) if isinstance(made, (list, tuple)) else (made,)


def _is_exported(cls: Any, config: type) -> bool:
    """Whether a class is one of transformers, made of this class of configurations itself."""
    own = getattr(cls, "config_class", None) is config
    return own and getattr(transformers, cls.__name__, None) is cls
