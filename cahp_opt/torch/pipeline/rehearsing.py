"""Trying the last stages on one batch before the long ones, so that a refusal comes early."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn

from cahp_opt.runs.recovery import Recovery
from cahp_opt.torch.blocks.finder import Prunable, UnsupportedModelError
from cahp_opt.torch.checkpoints.checkpoint import Saveable, check_saveable
from cahp_opt.torch.checkpoints.foreign_classes import is_foreign
from cahp_opt.torch.evaluation.fidelity import Fidelity
from cahp_opt.torch.recovery.finetuning import check_trainable
from cahp_opt.torch.recovery.mask_tuning import check_tunable
from cahp_opt.torch.recovery.refitting import check_refittable
from cahp_opt.torch.running.batches import inputs_of, prepare
from cahp_opt.torch.running.undisturbed import evaluating


def rehearse_recovery(prunable: Prunable, recovery: Recovery, batch: Mapping[str, Tensor]) -> None:
    """Refuse a model that could not be recovered.

    Args:
        prunable: the blocks of the unpruned model.
        recovery: the recovery of the sliced one.
        batch: one of the batches to recover on, tensors ``[batch, tokens]``.

    Raises:
        ValueError: naming the way out.
    """
    if recovery is Recovery.FINETUNE:
        check_trainable(prunable.model)
    if recovery.repairs:
        check = check_refittable if recovery.refits else check_tunable
        try:
            check(prunable, batch)
        except (ValueError, UnsupportedModelError) as error:
            raise ValueError(
                f"{str(error).rstrip('.')}. To leave the sliced model as it is, give `--recovery none`."
            ) from None


def rehearse_judging(model: nn.Module, fidelity: Fidelity, batch: Mapping[str, Tensor]) -> None:
    """Refuse outputs that the fidelity does not understand, on tensors ``[batch, tokens]``.

    Raises:
        ValueError: naming the output.
    """
    with torch.no_grad(), evaluating(model):
        ready = prepare(batch, model, "batches[0]")
        fidelity.output(model(**inputs_of(ready)), ready)


def rehearse_saving(prunable: Prunable, tokenizer: Saveable | None, folder: Path) -> None:
    """Write everything but the weights to a folder that is then removed.

    Args:
        prunable: the blocks of the unpruned model.
        tokenizer: saved beside it; None for none.
        folder: an empty folder on the disk where the model is going to be.

    Raises:
        ValueError: if it could not be saved, or not be loaded again.
        OSError: if nothing can be written there.
    """
    model = prunable.model
    check_saveable(prunable)
    name, stock = type(model).__name__, cast("Any", model)
    if not isinstance(getattr(transformers, name, None), type) and not is_foreign(type(model)):
        raise ValueError(
            f"`model` is a {name}, which the installed transformers {transformers.__version__} does not "
            "export, so that the saved model could not be loaded again to check it; use "
            "`cahp_opt.torch.slice_heads` and `save_pretrained` in Python."
        )
    parts = [stock.config, getattr(stock, "generation_config", None), tokenizer]
    with TemporaryDirectory(dir=folder) as place:
        for part in parts:
            if part is not None:
                try:
                    part.save_pretrained(place)
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    raise ValueError(
                        f"the {type(part).__name__} of `model` cannot be saved: {_line(error)}; correct it in "
                        "the folder of the model."
                    ) from None


def _line(error: BaseException) -> str:
    lines: Sequence[str] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".:")
