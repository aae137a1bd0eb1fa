"""Running the unpruned model on the first texts, before long work."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch

from cahp_opt.runs.media import Medium
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.checkpoints.load_errors import sentence_of
from cahp_opt.torch.evaluation.fidelity import Fidelity
from cahp_opt.torch.running.batches import inputs_of, prepare
from cahp_opt.torch.running.undisturbed import evaluating

_WAY_OUT = "prune it in Python, with `cahp_opt.torch` and batches of your own"


def rehearse_texts(
    prunable: Prunable,
    batch: Mapping[str, Any],
    fidelity: Fidelity | None = None,
    medium: Medium = Medium.TEXT,
) -> None:
    """Run the model on a batch of texts, or images or recordings, and refuse a model that needs more.

    Args:
        prunable: the blocks of the unpruned model; it is left as it was.
        batch: encoded texts.
        fidelity: the later comparison, tried on the output; None for none.
        medium: what the batch is of.

    Raises:
        ValueError: if the model does not run, if the examples do not reach one of its blocks, or if its output is
            not one that ``fidelity`` takes.
    """
    model, cls = prunable.model, type(prunable.model).__name__
    maker = "tokenizer" if medium is Medium.TEXT else "processor"
    reached = set[str]()
    with ExitStack() as stack, evaluating(model), torch.no_grad():
        for block in prunable:
            hook = block.site.register_forward_pre_hook(_marker(reached, block.name))
            stack.callback(hook.remove)
        ready = prepare(batch, model, "batch")
        try:
            output = model(**inputs_of(ready))
        except Exception as error:  # the code of a model raises anything over inputs that it lacks
            raise ValueError(
                f"the model, a {cls}, cannot be run on these {medium.value} ({sentence_of(error).rstrip('.')}); "
                f"check that the {maker} is the model's, or, if it reads more than {medium.value}, {_WAY_OUT}."
            ) from error
        if fidelity is not None:
            fidelity.output(output, ready)
    missing = [block.name for block in prunable if block.name not in reached]
    if missing:
        others = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise ValueError(
            f"the model, a {cls}, does not use its block {missing[0]}{others} when it reads {medium.value}, so "
            f"its heads cannot be measured; {_WAY_OUT}."
        )


def _marker(reached: set[str], name: str) -> Any:
    def mark(*_: object) -> None:
        reached.add(name)

    return mark
