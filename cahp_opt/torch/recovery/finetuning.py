"""Recovery by gradient steps: a thin wrapper over ``transformers.Trainer``, with distillation."""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cahp_opt.progress import Progress, silent
from cahp_opt.torch.evaluation.fidelity import Fidelity, fidelity_of
from cahp_opt.torch.running.batches import Batch, device_of, inputs_of, labels_of, prepare
from cahp_opt.torch.running.preparing import prepared
from cahp_opt.torch.running.undisturbed import evaluating, without_new_hooks


def finetune(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    dense: nn.Module | None = None,
    fidelity: Fidelity | None = None,
    epochs: int = 1,
    learning_rate: float = 5e-5,
    weight_decay: float = 0.01,
    distillation: float = 0.5,
    temperature: float = 2.0,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[float, ...]:
    """Train a sliced ``model``, in place, on labels, on the outputs of the ``dense`` model, or on both.

    AdamW with a linear warm-up over 6 % of the steps and a linear decay; gradients are clipped to the norm 1.
    One step per batch, in an order drawn anew every epoch. Frozen weights stay: those of blocks
    without units are, and so are any that the caller freezes. On a CPU the same seed gives the same
    weights; on a GPU only if its kernels are deterministic. The model's mode and all random states
    are left as found.

    Args:
        model: the sliced model, in float32 or bfloat16, on a CPU or on the first GPU.
        batches: keyword arguments for the model, kept in memory during the call; with
            ``labels`` (the tokens themselves for causal language models, -100 where there is
            padding) unless ``dense`` is given.
        dense: the model that it was sliced from, to distil from; None for labels alone.
        fidelity: the distance of the models' outputs; None for the one that fits the model's head.
        epochs: passes over the batches.
        learning_rate: the highest of AdamW.
        weight_decay: of AdamW.
        distillation: share of the distance to the dense model in the loss, from 0 to 1; the rest is the
            labels' loss. Batches without labels are trained on the distance alone.
        temperature: of the probabilities that the distance is taken of.
        seed: of the order of the batches and of dropout.
        progress: called once per step.

    Returns:
        The loss of every step.

    Raises:
        ValueError: without the package accelerate, if an argument is out of its range, ``model`` is
            ``dense`` or in half precision, a batch cannot be used, there is nothing to learn from,
            or the loss is not finite.
    """
    _check(epochs, learning_rate, weight_decay, distillation, temperature)
    if model is dense:
        raise ValueError("`model` and `dense` are the same object; slice a copy and train that.")
    check_trainable(model)
    fidelity = fidelity_of(model) if fidelity is None else fidelity
    data = list(prepared(batches, model))
    if dense is None and any(labels_of(batch) is None for batch in data):
        raise ValueError(
            "`batches` have no `labels` to learn from; add them (the tokens themselves for a causal "
            "language model), or pass `dense` to learn from its outputs."
        )

    def loss_of(batch: Batch) -> Tensor:
        inputs = inputs_of(batch)
        output = fidelity.output(model(**inputs), batch)
        label_loss = fidelity.loss(output, batch)
        if dense is None:
            if label_loss is None:
                raise ValueError(
                    f"{fidelity} has no loss of labels; pass `dense` to learn from its outputs."
                )
            return label_loss.mean()
        there = prepare(inputs, dense, "batches")
        with torch.no_grad():
            goal = fidelity.output(dense(**inputs_of(there)), there).to(output.device)
        distance = fidelity.softened(goal, output, batch, temperature).mean()
        if label_loss is None:
            return distance
        return distillation * distance + (1 - distillation) * label_loss.mean()

    models = (model,) if dense is None else (model, dense)
    with (
        evaluating(*models),
        without_new_hooks(model),
        _random_kept(),
        TemporaryDirectory() as folder,
    ):
        options = {
            "output_dir": folder,
            "num_train_epochs": epochs,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "warmup_steps": math.ceil(0.06 * epochs * len(data)),
            "seed": seed,
            "use_cpu": device_of(model).type == "cpu",
        }
        return _train(model, data, loss_of, options, progress)


def check_trainable(model: nn.Module) -> None:
    """Refuse a model that :func:`finetune` could not train.

    Raises:
        ValueError: for weights in half precision, or without a usable release of the package accelerate.
    """
    if find_spec("accelerate") is None:
        raise ValueError(
            "fine-tuning needs accelerate; install it with `pip install 'cahp-opt[finetune]'`."
        )
    from transformers import TrainingArguments

    try:
        with TemporaryDirectory() as folder:
            TrainingArguments(output_dir=folder, use_cpu=True, report_to="none")
    except ImportError as error:  # a release of accelerate that this transformers does not support
        why = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(
            f"fine-tuning needs another release of accelerate ({why}); install it with "
            "`pip install -U 'cahp-opt[finetune]'`."
        ) from None
    if any(p.dtype == torch.float16 for p in model.parameters()):
        raise ValueError(
            "`model` has weights in float16, in which small steps are lost; load it in float32 or "
            "bfloat16."
        )


def _train(
    model: nn.Module, data: list[Batch], loss_of: Any, options: dict[str, Any], progress: Progress
) -> tuple[float, ...]:
    from transformers import PrinterCallback, Trainer, TrainingArguments

    total, losses = options["num_train_epochs"] * len(data), list[float]()

    class Steps(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            del model, args, kwargs
            torch.clear_autocast_cache()  # or a caller's autocast computes with earlier weights
            loss = loss_of(inputs)
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise ValueError(
                    f"the loss is {losses[-1]} at step {len(losses)}; lower `learning_rate` (it is "
                    f"{options['learning_rate']}), or check the weights of both models."
                )
            progress("finetune", len(losses), total)
            return loss

    arguments: Any = TrainingArguments(
        **options,
        per_device_train_batch_size=1,  # an item of the data is a batch
        max_grad_norm=1.0,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    if arguments.n_gpu > 1:  # no copies on other devices: each would need a batch of its own
        arguments._n_gpu = 1
    items: Any = data
    trainer: Any = Steps(model=model, args=arguments, data_collator=_only, train_dataset=items)
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train()
    finally:
        model.zero_grad(set_to_none=True)
    return tuple(losses)


def _only(items: list[Any]) -> Any:
    return items[0]


def _check(
    epochs: int, learning_rate: float, weight_decay: float, distillation: float, temperature: float
) -> None:
    def problems() -> Iterator[tuple[str, str, float]]:
        if not (isinstance(epochs, int) and epochs >= 1):
            yield "epochs", "a whole number of at least 1", epochs
        if not 0 < learning_rate < math.inf:
            yield "learning_rate", "a finite number above 0", learning_rate
        if not 0 <= weight_decay < math.inf:
            yield "weight_decay", "a finite number of at least 0", weight_decay
        if not 0 <= distillation <= 1:
            yield "distillation", "a share from 0 to 1", distillation
        if not 0 < temperature < math.inf:
            yield "temperature", "a finite number above 0", temperature

    for name, allowed, got in problems():
        raise ValueError(f"`{name}` must be {allowed}, got {got}.")


@contextmanager
def _random_kept() -> Generator[None, None, None]:
    """Restores the random states of Python and NumPy, which the trainer seeds."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
