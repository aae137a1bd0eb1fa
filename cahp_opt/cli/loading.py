"""The model that a command works on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cahp_opt.cli.display import Display
from cahp_opt.cli.notes import note
from cahp_opt.cli.options import ModelOptions
from cahp_opt.runs.kinds import Kinds
from cahp_opt.runs.media import Medium
from cahp_opt.runs.names import Units
from cahp_opt.space import HeadSpace
from cahp_opt.stats.pooling import Pooling

if TYPE_CHECKING:
    from torch import nn

    from cahp_opt.torch.pipeline.run import Named


def set_threads(threads: int | None) -> list[str]:
    """Set the threads of the CPU: those asked for, or as many of PyTorch's as have a processor.

    Returns:
        What there is to say about it.
    """
    import torch

    from cahp_opt.costs.processors import fitting_threads, granted

    usual = torch.get_num_threads()
    wanted = usual if threads is None else threads
    fitting = fitting_threads(wanted)
    share = f"control groups grant {granted():g} of the processors" if granted() else ""
    told = list[str]()
    if threads is None and fitting < usual and "OMP_NUM_THREADS" not in os.environ:
        wanted = fitting
        why = share or "the process may run on no more processors"
        told.append(f"{wanted} threads of {usual}, because {why}; `--threads` overrides it.")
    elif share and fitting < wanted:
        told.append(f"{wanted} threads are stopped for a part of the time, because {share}.")
    torch.set_num_threads(wanted)
    return told


def model_of(options: ModelOptions, display: Display) -> nn.Module:
    """The model, with notes about what is foreign to it or lost."""
    name, lost = options.model, tuple(dict.fromkeys(options.leave_out))
    with display.stage("load"):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

        from cahp_opt.torch.checkpoints.model_loading import foreign_code, load_model, quiet

        quiet()
        told = set_threads(options.threads)
        model = load_model(
            name,
            device=options.device,
            device_map=options.device_map,
            precision=options.precision,
            leave_out=lost,
            trust_remote_code=options.trust_remote_code,
        )
    note([*told, *([] if options.trust_remote_code else foreign_code(name, model))])
    note(f"the weights of {module} in {name} are left out." for module in lost)
    return model


def named_of(
    options: ModelOptions,
    display: Display,
    *,
    medium: Medium | None = Medium.TEXT,
    pooling: Pooling | None = None,
) -> Named:
    """The model with what makes its inputs; without a tokenizer only where no texts are read.

    Args:
        options: the model.
        display: shows the stage.
        medium: what the examples are; None without any.
        pooling: how the model embeds texts.
    """
    name, model = options.model, model_of(options, display)

    from cahp_opt.torch.checkpoints.model_loading import (
        ModelError,
        foreign_tokens,
        load_tokenizer,
        refuse_other_medium,
    )
    from cahp_opt.torch.pipeline.run import Named
    from cahp_opt.torch.running.main_input import medium_of

    if medium is not None:
        refuse_other_medium(name, model, medium)
    trusted, of_texts = options.trust_remote_code, medium_of(model) in (None, Medium.TEXT)
    processor = None
    try:
        if of_texts:
            processor = load_tokenizer(name, trust_remote_code=trusted)
        else:
            processor = processor_of(options, model)
    except ModelError:
        if medium is not None:
            raise
    note(foreign_tokens(name, processor) if of_texts and not trusted else [])
    return Named(name, model, processor, pooling)


def processor_of(options: ModelOptions, model: nn.Module) -> Any:
    """What makes a model's inputs from images or recordings; None for a model of texts."""
    from cahp_opt.torch.checkpoints.processors import load_processor
    from cahp_opt.torch.running.main_input import medium_of

    medium = medium_of(model)
    if medium in (None, Medium.TEXT):
        return None
    return load_processor(options.model, medium, trust_remote_code=options.trust_remote_code)


def read_by(model: nn.Module) -> dict[str, object]:
    """What a model reads, and whether tokens are among it, as facts for the rules on idle options."""
    from cahp_opt.torch.running.main_input import medium_of, writes

    medium = medium_of(model)
    return {"medium": medium, "tokens": medium in (None, Medium.TEXT) or writes(model)}


def embeds(named: Named) -> bool:
    """Whether a model's output is an embedding that all of its tokens make; refuses an output that cannot be
    compared."""
    from cahp_opt.torch.checkpoints.model_loading import output_of
    from cahp_opt.torch.evaluation.fidelity import embeds_all_tokens

    return embeds_all_tokens(output_of(named.name, named.model, named.pooling))


def in_kinds(named: Named, kinds: Kinds, units: Units) -> Named:
    """The model with the blocks of some kinds that it has, and a note about units that do nothing.

    Raises:
        ValueError: if the user asked for neurons, and it has no feed-forward part that is understood.
    """
    settled = replace(named, kinds=replace(kinds, unit=units.unit)).settled()
    note(idle_units(units, settled.prunable.space))
    return settled


def idle_units(units: Units, space: HeadSpace) -> Iterable[str]:
    """A sentence if the units that were asked for are those that the model has anyway, or not pruned."""
    if units.unit is None:
        return
    if not space.of_attention.any():
        yield f"`--units {units.value}` does nothing here: no attention is pruned."
    elif all(block.unit is not units.unit for block in space.blocks):
        yield (
            f"`--units {units.value}` does nothing here: no query heads of this model share key/value "
            "heads."
        )
