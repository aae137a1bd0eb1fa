"""One model type: build it tiny, run it, slice it, and compare with the masked model independently."""

from __future__ import annotations

import copy
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

from cahp_opt.space import HeadSpace
from cahp_opt.torch import (
    Prunable,
    SliceError,
    UnsupportedModelError,
    capture_head_outputs,
    explicit_attention,
    find_prunable,
    head_mask,
    slice_heads,
)

MOST_PARAMETERS = 30_000_000
VARIANTS = 9
TOLERANCE = 1e-4
"""Of the largest value of an output, float32."""

DOUBLE_TOLERANCE = 1e-9
"""The same in float64, asked where float32 differs by more."""

EFFECT = 1e-3
"""What removing the units must change, of the largest value of an output, for a comparison to count."""


Keep = np.ndarray[Any, np.dtype[np.bool_]]


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


def judge(
    model_type: str, *, build_only: bool = False, sizes: Sizes | None = None
) -> dict[str, Any]:
    """The row of a model type: status, reason, and what was built; ``sizes`` that built it before are tried
    first.

    Key/value heads are shared by query heads where the configuration has a field for it. Where that is
    not understood, the type is built again with as many of one as of the other, because some classes
    ignore the field; the row then says so.
    """
    first = TRIALS if sizes is None else (sizes,)
    row = _judged(model_type, first, build_only=build_only)
    if sizes is not None and row["status"] == Status.NOT_BUILT.value:
        row = _judged(model_type, TRIALS, build_only=build_only)
    built = row.get("sizes", {})
    unclear = row["status"] in (Status.REFUSED.value, Status.SLICE_ERROR.value)
    if unclear and built["kv_heads"] < built["heads"]:
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
    """What becomes of heads and, in the entry ``neurons``, of feed-forward parts: both at once or, where that
    does not work, one after the other."""
    try:
        found = find_prunable(running.model)
    except UnsupportedModelError as error:
        status = Status.REFUSED if running.attention_like else Status.NO_ATTENTION
        return status, str(error), {"neurons": _neurons_alone(running)}
    if not found.feed_forward:
        reason = next((why for _, why in _skipped_parts(found)), "nothing looks like one")
        status, why, more = _tried(running, found)
        return status, why, {**more, "neurons": _part(Status.REFUSED, reason, found)}
    found = _in_random_groups(found)
    status, reason, more = _tried(running, found)
    if status is Status.PASSED:
        return status, reason, {**more, "neurons": _part(status, "", found, **more)}
    both = f"{status.value}: {reason}"
    alone = find_prunable(running.model, neurons=False)
    status, reason, more = _tried(running, alone)
    return status, reason, {**more, "both": both, "neurons": _neurons_alone(running)}


def _neurons_alone(running: Running) -> dict[str, Any]:
    try:
        found = _in_random_groups(find_prunable(running.model, heads=False))
    except UnsupportedModelError as error:
        return {"status": Status.REFUSED.value, "reason": str(error), "blocks": 0}
    status, reason, more = _tried(running, found)
    return _part(status, reason, found, **more)


def _part(status: Status, reason: str, found: Prunable, **more: Any) -> dict[str, Any]:
    """The entry about feed-forward parts; those that do not run are no evidence."""
    parts = [block.name for block in found.feed_forward]
    ran = [name for name in parts if name not in more.get("blocks_not_reached", ())]
    if status is Status.PASSED and not ran:
        status, reason = Status.NOT_BUILT, "the inputs reach none of its feed-forward parts"
    elif status is Status.PASSED and "effect_of_neurons" not in more:
        status, reason = Status.NOT_BUILT, "its parts have one group each in the tiny configuration"
    elif status is Status.PASSED and not more["effect_of_neurons"] >= EFFECT:
        status, reason = Status.NOT_BUILT, "its outputs hardly depend on its feed-forward parts"
    skipped = {str(k): str(v) for k, v in _skipped_parts(found)}
    entry = {"status": status.value, "reason": reason, "blocks": len(parts), "skipped": skipped}
    return entry | {"effect": more["effect_of_neurons"]} if "effect_of_neurons" in more else entry


def _skipped_parts(found: Prunable) -> list[tuple[str, str]]:
    """What was left alone but attention."""
    alone = find_prunable(found.model, neurons=False).skipped if found.attention else ()
    return [(name, why) for name, why in found.skipped if (name, why) not in alone]


def _in_random_groups(found: Prunable) -> Prunable:
    """The same blocks with any neurons put into one group."""
    rng = np.random.default_rng(1)
    return found.grouped(
        HeadSpace(
            tuple(
                b._replace(order=b.order and tuple(rng.permutation(b.order).tolist()))
                for b in found.space.blocks
            )
        )
    )


def _tried(running: Running, found: Prunable) -> tuple[Status, str, dict[str, Any]]:
    space = found.space
    silent = _not_reached(running, found)
    if len(silent) == len(found):
        return Status.NOT_BUILT, "the inputs reach none of its blocks", {}
    of_attention = space.of_attention[space.block_of]
    keep_sets = _keep_sets(space, silent)
    more: dict[str, Any] = {
        "blocks": len(found.attention),
        "units": int(of_attention.sum()),
        "units_removed": int((~keep_sets["random"])[of_attention].sum()),
        "blocks_not_reached": [found.blocks[i].name for i in sorted(silent)],
        "skipped": {str(k): str(v) for k, v in dict(found.skipped).items()},
    }
    if keep_sets["random"].all():
        return Status.NOT_BUILT, "its blocks have one unit each in the tiny configuration", more
    judged: dict[str, dict[str, Any]] = {}
    for name, kept in keep_sets.items():
        lengths = _lengths(running) if name == "random" else (TOKENS,)
        status, reason, numbers = _compared(running, found, kept, lengths)
        judged[name] = numbers
        if status is not Status.PASSED:
            return (
                status,
                reason if name == "random" else f"{reason} (kept: {name})",
                more | numbers,
            )
    more |= judged["random"]
    more["difference"] = max(numbers["difference"] for numbers in judged.values())
    for kind, ours in (("heads", of_attention), ("neurons", ~of_attention)):
        if not keep_sets["random"][ours].all():
            more[f"effect_of_{kind}"] = _effect(running, found, keep_sets["random"] | ~ours)
    if more.get("effect_of_heads", 1.0) < EFFECT:
        text = f"its outputs hardly depend on its attention: {more['effect_of_heads']:.1g} of the largest value"
        return Status.NOT_BUILT, text, more
    return Status.PASSED, "", {**more, "keep_sets": list(judged)}


def _effect(running: Running, found: Prunable, kept: Keep) -> float:
    """How far a mask moves the outputs, of their largest values."""
    batch = running.batch(101, padded=False)
    dense = outputs(running.model, batch)
    with head_mask(found, kept):
        masked = outputs(running.model, batch)
    moved = [
        _largest(dense[name] - value) / _largest(value)
        for name, value in masked.items()
        if _largest(value)
    ]
    return max(moved, default=0.0)


def _compared(
    running: Running, found: Prunable, kept: Keep, lengths: tuple[int, ...]
) -> tuple[Status, str, dict[str, Any]]:
    """Slice, and compare with the masked model on other inputs, padded and not, of every length.

    Long texts come first: a model may change for good when it meets a short one.
    """
    model = running.model
    try:
        small = slice_heads(found, kept, batch=running.batch(0, padded=False))
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
            with head_mask(found, kept):
                masked = outputs(model, batch)
            try:
                sliced = outputs(small, batch)
            except Exception as error:
                text = f"cannot run on another batch of {tokens} tokens: {_short(error)}"
                return Status.SILENTLY_WRONG, text, {}
            if masked.keys() != sliced.keys():
                return Status.SILENTLY_WRONG, "other outputs than the masked model", {}
            for name, reference in masked.items():
                if reference.shape != sliced[name].shape:
                    return Status.SILENTLY_WRONG, f"output {name} has another shape", {}
                scale = _largest(reference)
                if scale:
                    worst = max(worst, _largest(sliced[name] - reference) / scale)
                    effect = max(effect, _largest(dense[name] - reference) / scale)
    if not effect >= EFFECT:
        text = f"its outputs hardly depend on what is pruned: {effect:.1g} of the largest value"
        return Status.NOT_BUILT, text, {}
    more: dict[str, Any] = {"difference": worst, "effect": effect}
    more["lengths"] = [n for n in lengths if str(n) not in cannot]
    if cannot:
        more["lengths_not_taken"] = cannot
    if not worst <= TOLERANCE:
        # Rounding may be what decides which of some candidates a model goes on with.
        more["difference_in_double"] = exact = _difference_in_double(running, found, kept)
        if not exact <= DOUBLE_TOLERANCE:
            text = f"differs from the masked model by {worst:.2g} of the largest value"
            return Status.SILENTLY_WRONG, text, more
    return Status.PASSED, "", more


def _difference_in_double(running: Running, found: Prunable, kept: Keep) -> float:
    """The same comparison in double precision; infinite if the model does not run in it."""
    wide = copy.deepcopy(running.model).double()
    blocks = found.at(wide)
    worst = 0.0
    try:
        small = slice_heads(blocks, kept, batch=_doubled(running.batch(0, padded=False)))
        for seed, padded in ((101, False), (202, True)):
            batch = _doubled(running.batch(seed, padded=padded))
            with head_mask(blocks, kept):
                masked = outputs(wide, batch)
            sliced = outputs(small, batch)
            for name, value in masked.items():
                if _largest(value):
                    worst = max(worst, _largest(sliced[name] - value) / _largest(value))
    except Exception:
        return math.inf
    return worst


def _doubled(batch: dict[str, Any]) -> dict[str, Any]:
    floats = {k: v for k, v in batch.items() if isinstance(v, Tensor) and v.is_floating_point()}
    return {**batch, **{name: value.double() for name, value in floats.items()}}


def _lengths(running: Running) -> tuple[int, ...]:
    return (LONG, TOKENS, SHORT) if "input_ids" in running.names else (TOKENS,)


def _largest(value: Tensor) -> float:
    value = value[torch.isfinite(value)] if not bool(torch.isfinite(value).all()) else value
    return float(value.abs().amax()) if value.numel() else 0.0


def _not_reached(running: Running, found: Prunable) -> set[int]:
    """The blocks that the model does not run on its inputs; they are kept whole."""
    silent = set(range(len(found)))
    with capture_head_outputs(found, lambda index, z: silent.discard(index) if z.numel() else None):
        outputs(running.model, running.batch(0, padded=False))
    return silent


def _keep_sets(space: HeadSpace, silent: set[int]) -> dict[str, Keep]:
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
