"""The recovery of a sliced model, by the options of a run."""

from __future__ import annotations

from cahp_opt.progress import Stages
from cahp_opt.runs.plan import RecoveryOptions
from cahp_opt.runs.recovery import Recovery, Weighting
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.evaluation.fidelity import Fidelity
from cahp_opt.torch.pipeline.run import Batches
from cahp_opt.torch.recovery.finetuning import finetune
from cahp_opt.torch.recovery.mask_tuning import tune_found
from cahp_opt.torch.recovery.refitting import refit_found
from cahp_opt.torch.recovery.token_weights import TokenWeights


def repair(
    small: Prunable,
    dense: Prunable,
    batches: Batches,
    options: RecoveryOptions,
    *,
    weights: TokenWeights | None = None,
    fidelity: Fidelity | None = None,
    seed: int = 0,
    stages: Stages,
) -> None:
    """Recover a sliced model in place.

    Args:
        small: the blocks of the sliced model.
        dense: the blocks that it was sliced from.
        batches: texts to recover on, tensors ``[batch, tokens]``.
        options: what to do.
        weights: the weights of tokens in the refit; None for 1 each.
        fidelity: how outputs are compared; None for what fits the model's head.
        seed: of the order of the batches.
        stages: shows the stages.
    """
    if options.recovery is Recovery.MASK_TUNING:
        with stages.stage("tune masks") as progress:
            tune_found(
                small,
                dense,
                batches,
                fidelity=fidelity,
                memory=options.stream_bytes,
                progress=progress,
            )
    if options.recovery.refits:
        with stages.stage("refit") as progress:
            refit_found(
                small,
                dense,
                batches,
                weighting=weights or Weighting.EQUAL,
                feed_forward=options.feed_forward,
                memory=options.stream_bytes,
                progress=progress,
            )
        if weights is not None:
            weights.streams.forget()
    if options.recovery is Recovery.FINETUNE:
        with stages.stage("finetune") as progress:
            finetune(
                small.model,
                batches,
                dense=dense.model,
                fidelity=fidelity,
                epochs=options.epochs,
                learning_rate=options.learning_rate,
                seed=seed,
                progress=progress,
            )
