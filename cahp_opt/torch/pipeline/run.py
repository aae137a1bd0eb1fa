"""What one run holds: the model, its texts as batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cahp_opt.runs.plan import Reading
from cahp_opt.runs.texts import TextSplit
from cahp_opt.stats.pooling import Pooling
from cahp_opt.torch.evaluation.fidelity import (
    fidelity_of,
)
from cahp_opt.torch.running.batches import batch_size
from cahp_opt.torch.texts.encoding import encode, notes_on_empty
from cahp_opt.torch.texts.rehearsal import rehearse_texts

Batches = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Named:
    """A model, its tokenizer, and the name it was loaded by.

    Args:
        name: a folder or a hub id.
        model: the model.
        tokenizer: its tokenizer.
        pooling: how it embeds texts; None for what the files beside it say.
    """

    name: str
    model: nn.Module
    tokenizer: Any
    pooling: Pooling | None = None


@dataclass(frozen=True)
class EncodedTexts:
    """Encoded texts, how many are calibrated on, and what the user should know about them."""

    calibration: Batches
    held_out: Batches
    texts: int
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(named: Named, texts: TextSplit, reading: Reading) -> EncodedTexts:
        def encoded(part: Any) -> Batches:
            return encode(
                part,
                named.tokenizer,
                named.model,
                batch_size=reading.batch_size,
                max_length=reading.max_length,
                seed=reading.seed,
            )

        fidelity = fidelity_of(named.model, named.pooling)
        held_out: Batches = encoded(texts.held_out) if texts.held_out else []
        calibration = encoded(texts.calibration)
        # What the model cannot be run on, or compared by, ends here, before the long work.
        rehearse_texts(named.model, calibration[0], fidelity)
        notes = [*texts.notes, *notes_on_empty(texts, [*calibration, *held_out])]
        return EncodedTexts(calibration, held_out, sum(map(batch_size, calibration)), tuple(notes))
