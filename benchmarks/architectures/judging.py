"""One model type: build it tiny, run it, slice it, and compare with the masked model independently."""

from __future__ import annotations

import importlib
import inspect
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batches import LONG, SHORT, TOKENS, Wish, arguments, make, mentioned, placeholders
from shrinking import OPTIONS, TRIALS, Sizes, shrunk
from torch import Tensor, nn

from cahp_opt.torch import (
    SliceError,
    UnsupportedModelError,
    capture_head_outputs,
    explicit_attention,
    find_attention,
    head_mask,
    slice_heads,
)

MOST_PARAMETERS = 30_000_000
VARIANTS = 9
TOLERANCE = 1e-4
"""Of the largest value of an output, float32."""

EFFECT = 1e-3
"""What removing the units must change, of the largest value of an output, for a comparison to count."""


class Status(Enum):
    """What became of a model type."""

    NOT_BUILT = "not built"
    NO_ATTENTION = "no attention"
    REFUSED = "refused"
    SLICE_ERROR = "slice error"
    SILENTLY_WRONG = "silently wrong"
    PASSED = "passed"


class NotBuiltError(Exception):
    """The type cannot be built or run; the sentence says why."""


class NoModelError(NotBuiltError):
    """The configuration is of a part that is no model."""


@dataclass
class Running:
    """A model with inputs that it accepts."""

    model: nn.Module
    names: tuple[str, ...]
    variant: int
    placeholders: dict[int, int]
    sizes: Sizes
    attention_like: int
    reached: int

    def batch(self, seed: int, *, padded: bool, tokens: int = TOKENS) -> dict[str, Any]:
        wish = Wish(self.model, seed, padded, self.variant, self.placeholders, tokens)
        return make(wish, self.names)


def model_types() -> list[str]:
    """Every model type of the installed transformers, and those of them with other options."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    names = sorted(CONFIG_MAPPING_NAMES)
    return [n for name in names for n in (name, *_variants(name))]


def _variants(model_type: str) -> dict[str, dict[str, Any]]:
    """The options of a model type by the names of its variants."""
    return {
        f"{model_type} with {' and '.join(f'{k}={v}'.replace(',', '') for k, v in options.items())}": options
        for options in OPTIONS.get(model_type, ())
    }


def judge(model_type: str, *, build_only: bool = False) -> dict[str, Any]:
    """The row of a model type: status, reason, and what was built.

    Key/value heads are shared by query heads where the configuration has a field for it. Where that is
    not understood, the type is built again with as many of one as of the other, because some classes
    ignore the field; the row then says so.
    """
    row = _judged(model_type, TRIALS, build_only=build_only)
    sizes = row.get("sizes", {})
    unclear = row["status"] in (Status.REFUSED.value, Status.SLICE_ERROR.value)
    if unclear and sizes["kv_heads"] < sizes["heads"]:
        equal = tuple(s for s in TRIALS if s.kv_heads == s.heads)
        again = _judged(model_type, equal, build_only=build_only)
        if again["status"] == Status.PASSED.value:
            return {**again, "with_groups": row["reason"]}
    return row


def _judged(model_type: str, trials: Sequence[Sizes], *, build_only: bool) -> dict[str, Any]:
    try:
        running = build(model_type, trials)
    except NotBuiltError as error:
        return {"status": Status.NOT_BUILT.value, "reason": str(error)}
    row: dict[str, Any] = {
        "class": type(running.model).__name__,
        "parameters": sum(p.numel() for p in running.model.parameters()),
        "inputs": list(running.names),
        "sizes": asdict(running.sizes),
        "attention_modules": running.attention_like,
        "attention_modules_reached": running.reached,
    }
    if build_only:
        return {"status": "built", "reason": "", **row}
    status, reason, more = _sliced(running)
    return {"status": status.value, "reason": reason, **row, **more}


def build(model_type: str, trials: Sequence[Sizes] = TRIALS) -> Running:
    """A tiny model of this type that runs, with the inputs it runs on.

    Raises:
        NotBuiltError: if there is none among the sizes tried.
    """
    from transformers import CONFIG_MAPPING

    plain = model_type.partition(" with ")[0]
    options = _variants(plain).get(model_type)
    try:
        default = CONFIG_MAPPING[plain]()
    except Exception as error:
        default = None
        failure = f"its default configuration fails: {_short(error)}"
    if default is None:
        raise NotBuiltError(failure)
    best: Running | None = None
    failures: list[str] = []
    for sizes in trials:
        try:
            model = _model(shrunk(default, sizes, options))
        except Exception as error:
            failures.append(_short(error))
            if isinstance(error, (NoModelError, ImportError)):
                break
            continue
        try:
            running = _running(model, sizes)
        except Exception as error:
            failures.append(_short(error))
            if isinstance(error, (NotImplementedError, ImportError)):
                break  # other sizes would not help
            continue
        if best is None or _worth(running) > _worth(best):
            best = running
        if best.attention_like and best.reached == best.attention_like:
            break
        if best.attention_like and sizes.layers > 2:
            break
    if best is None:
        raise NotBuiltError(failures[0])
    return best


def _worth(running: Running) -> tuple[bool, float]:
    return running.attention_like > 0, running.reached / max(running.attention_like, 1)


def _model(config: Any) -> nn.Module:
    cls = _class_of(config)
    with torch.device("meta"):
        try:
            size = sum(p.numel() for p in cls(config).parameters())
        except (RuntimeError, NotImplementedError):
            size = 0  # some constructors compute with their weights
    if size > MOST_PARAMETERS:
        raise NotBuiltError(f"its configuration cannot be shrunk below {size:,} parameters")
    torch.manual_seed(0)
    model = cls(config).float().eval()
    _stir(model)
    explicit_attention(model)
    return model


def _class_of(config: Any) -> type[nn.Module]:
    import transformers
    from transformers.models.auto import modeling_auto

    if type(config) in modeling_auto.MODEL_MAPPING:
        found = modeling_auto.MODEL_MAPPING[type(config)]
        return found[0] if isinstance(found, (tuple, list)) else found
    package = importlib.import_module(type(config).__module__.rpartition(".")[0])
    names = [
        f"{package.__name__}.{path.stem}"
        for path in sorted(Path(str(package.__file__)).parent.glob("modeling_*.py"))
    ]
    classes = [
        c
        for name in names
        for _, c in inspect.getmembers(importlib.import_module(name), inspect.isclass)
        if issubclass(c, transformers.PreTrainedModel)
        and c.config_class is type(config)
        and c.__module__ == name
        and not c.__name__.endswith("PreTrainedModel")
    ]
    if not classes:
        raise NoModelError("no model class takes its configuration alone")
    return min(classes, key=lambda c: (not c.__name__.endswith("Model"), len(c.__name__)))


def _stir(model: nn.Module) -> None:
    """Move every weight off its initial value, so that nothing is zero or one by construction."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point() or not parameter.numel():
                continue
            spread = 0.1 if parameter.ndim < 2 else 0.5 / math.sqrt(parameter[0].numel())
            noise = torch.randn(parameter.shape, generator=random)
            parameter.copy_(torch.nan_to_num(parameter) + spread * noise)


def _running(model: nn.Module, sizes: Sizes) -> Running:
    looks = [m for m in model.modules() if _looks_like_attention(m)]
    inner = [m for m in looks if not any(o in looks for o in m.modules() if o is not m)]
    reached: set[int] = set()
    handles = [m.register_forward_hook(lambda m, a, o: reached.add(id(m))) for m in (inner or [])]
    first: Exception | None = None
    best: Running | None = None
    try:
        for names in arguments(model):
            for variant in range(VARIANTS):
                reached.clear()
                try:
                    found = _attempt(model, names, variant)
                except Exception as error:
                    first = first or error
                    if not _about_shapes(names):
                        break
                    continue
                running = Running(model, *found, sizes, len(inner), len(reached))
                if best is None or _worth(running) > _worth(best):
                    best = running
                break
            if best and best.reached == len(inner):
                break
    finally:
        for handle in handles:
            handle.remove()
    if best is None:
        raise first or NotBuiltError("no inputs can be made for it")
    return best


def _about_shapes(names: tuple[str, ...]) -> bool:
    return any(n.startswith(("pixel", "input_f", "input_v", "hidden", "image")) for n in names)


def _attempt(
    model: nn.Module, names: tuple[str, ...], variant: int
) -> tuple[tuple[str, ...], int, dict[int, int]]:
    """Run the model; where an error message names another argument, or counts differ, try again."""
    counts: dict[int, int] = {}
    tried_counts = False
    for _ in range(6):
        wish = Wish(model, 0, True, variant, counts)
        try:
            outputs(model, make(wish, names))
            return names, variant, counts
        except Exception as error:
            more = [n for n in mentioned(model, str(error)) if n not in names]
            if more:
                names = (*names, more[0])
            elif not tried_counts and "input_ids" in names and len(names) > 2:
                tried_counts = True
                counts = placeholders(model, make(wish, names))
                if not counts:
                    raise
            else:
                raise
    raise NotBuiltError("no inputs can be made for it")


def outputs(model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Every floating-point output of the model by its place; caches and attention maps left out."""
    torch.manual_seed(0)
    with torch.no_grad():
        output = model(**batch)
    mask = batch.get("attention_mask")
    found: dict[str, Tensor] = {}
    for name, value in _tensors("", output):
        by_token = isinstance(mask, Tensor) and value.shape[:2] == mask.shape and value.ndim > 2
        found[name] = value[mask != 0] if by_token else value
    return found


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not any(word in str(key) for word in ("attentions", "past_key_values", "cache")):
                yield from _tensors(f"{name}.{key}", inner)
    elif isinstance(value, (tuple, list)):
        for i, inner in enumerate(value):
            yield from _tensors(f"{name}[{i}]", inner)


def _looks_like_attention(module: nn.Module) -> bool:
    label = type(module).__name__.lower()
    return ("attention" in label or "attn" in label) and any(True for _ in module.parameters())


def _sliced(running: Running) -> tuple[Status, str, dict[str, Any]]:
    model = running.model
    try:
        attention = find_attention(model)
    except UnsupportedModelError as error:
        status = Status.REFUSED if running.attention_like else Status.NO_ATTENTION
        return status, str(error), {}
    space = attention.space
    silent = _not_reached(running, attention)
    if len(silent) == len(attention):
        return Status.NOT_BUILT, "the inputs reach none of its attention", {}
    skipped = getattr(attention, "skipped", {})
    keep_sets = _keep_sets(space, silent)
    more: dict[str, Any] = {
        "blocks": len(attention),
        "units": space.n,
        "units_removed": int((~keep_sets["random"]).sum()),
        "blocks_not_reached": [attention.blocks[i].name for i in sorted(silent)],
        "skipped": {str(k): str(v) for k, v in dict(skipped).items()},
    }
    if keep_sets["random"].all():
        return Status.NOT_BUILT, "its blocks have one unit each in the tiny configuration", more
    judged: dict[str, dict[str, Any]] = {}
    for name, kept in keep_sets.items():
        lengths = _lengths(running) if name == "random" else (TOKENS,)
        status, reason, found = _compared(running, kept, lengths)
        judged[name] = found
        if status is not Status.PASSED:
            return status, reason if name == "random" else f"{reason} (kept: {name})", more | found
    more |= judged["random"]
    more["difference"] = max(found["difference"] for found in judged.values())
    return Status.PASSED, "", {**more, "keep_sets": list(judged)}


def _compared(
    running: Running, kept: np.ndarray[Any, np.dtype[np.bool_]], lengths: tuple[int, ...]
) -> tuple[Status, str, dict[str, Any]]:
    """Slice, and compare with the masked model on other inputs, padded and not, of every length.

    Long texts come first: a model may change for good when it meets a short one.
    """
    model = running.model
    try:
        small = slice_heads(model, kept, batch=running.batch(0, padded=False))
    except UnsupportedModelError as error:
        return Status.REFUSED, str(error), {}
    except SliceError as error:
        return Status.SLICE_ERROR, str(error), {}
    except ValueError as error:
        if "does not reach" in str(error):
            return Status.NOT_BUILT, f"inputs for all its towers are needed: {error}", {}
        return Status.SLICE_ERROR, f"{type(error).__name__}: {_short(error)}", {}
    except Exception as error:  # the library must not fail in another way; the row says so
        return Status.SLICE_ERROR, f"{type(error).__name__}: {_short(error)}", {}
    worst = effect = 0.0
    cannot: dict[str, str] = {}
    for tokens in lengths:
        for seed, padded in ((101, False), (202, True)):
            batch = running.batch(seed, padded=padded, tokens=tokens)
            try:
                dense = outputs(model, batch)
            except Exception as error:
                if tokens == TOKENS:
                    raise
                cannot[str(tokens)] = _short(error)  # the unpruned model takes no such length
                break
            with head_mask(model, kept):
                masked = outputs(model, batch)
            try:
                found = outputs(small, batch)
            except Exception as error:
                text = f"cannot run on another batch of {tokens} tokens: {_short(error)}"
                return Status.SILENTLY_WRONG, text, {}
            if masked.keys() != found.keys():
                return Status.SILENTLY_WRONG, "other outputs than the masked model", {}
            for name, reference in masked.items():
                if reference.shape != found[name].shape:
                    return Status.SILENTLY_WRONG, f"output {name} has another shape", {}
                scale = _largest(reference)
                if scale:
                    worst = max(worst, _largest(found[name] - reference) / scale)
                    effect = max(effect, _largest(dense[name] - reference) / scale)
    if not effect >= EFFECT:
        text = f"its outputs hardly depend on its attention: {effect:.1g} of the largest value"
        return Status.NOT_BUILT, text, {}
    more: dict[str, Any] = {"difference": worst, "effect": effect}
    more["lengths"] = [n for n in lengths if str(n) not in cannot]
    if cannot:
        more["lengths_not_taken"] = cannot
    if not worst <= TOLERANCE:
        text = f"differs from the masked model by {worst:.2g} of the largest value"
        return Status.SILENTLY_WRONG, text, more
    return Status.PASSED, "", more


def _lengths(running: Running) -> tuple[int, ...]:
    return (LONG, TOKENS, SHORT) if "input_ids" in running.names else (TOKENS,)


def _largest(value: Tensor) -> float:
    value = value[torch.isfinite(value)] if not bool(torch.isfinite(value).all()) else value
    return float(value.abs().amax()) if value.numel() else 0.0


def _not_reached(running: Running, attention: Any) -> set[int]:
    """The blocks that the model does not run on its inputs; they are kept whole."""
    silent = set(range(len(attention)))
    with capture_head_outputs(attention, lambda index, z: silent.discard(index)):
        outputs(running.model, running.batch(0, padded=False))
    return silent


def _keep_sets(space: Any, silent: set[int]) -> dict[str, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Keep-sets that remove something from every block that runs and has several units, by name."""
    random = np.random.default_rng(0)
    found = {
        name: np.ones(space.n, dtype=bool)
        for name in ("random", "one of each", "two of each", "every other block empty")
    }
    for index, where in enumerate(space.slices):
        size = where.stop - where.start
        if size > 1 and index not in silent:
            some = random.choice(size, size=int(random.integers(1, size)), replace=False)
            each = {
                "random": some,
                "one of each": some[:1],
                "two of each": [0, size - 1] if size > 2 else [0],
                "every other block empty": [] if index % 2 else [size - 1],
            }
            for name, keep in each.items():
                found[name][where] = False
                found[name][where.start + np.asarray(keep, dtype=int)] = True
    return found


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    text = re.sub(r"/\S*/site-packages/", "", " ".join(lines[:3]))
    name = "" if isinstance(error, NotBuiltError) else f"{type(error).__name__}: "
    return (name + text)[:300]
