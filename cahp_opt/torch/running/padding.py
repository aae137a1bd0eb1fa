"""Telling padding from real tokens in the activations of a block."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, cast

from torch import Tensor, nn

from cahp_opt.torch.blocks.finder import Prunable, PrunableBlock
from cahp_opt.torch.running.batches import Batch, decoder_tokens, real_tokens

_TEXT = ("input_ids", "inputs_embeds")


class Padding:
    """Knows which padding mask the activations of every block follow.

    Blocks in the decoder of an encoder-decoder model, cross-attention included, stand at decoder
    positions; blocks of a part that reads images or sound follow no mask of tokens; all others follow
    ``attention_mask``. A mask that does not fit the shape of the activations (windows,
    frames after a convolution, models that unpad themselves) is ignored: then every row counts.

    Args:
        prunable: the blocks of the model.
    """

    def __init__(self, prunable: Prunable) -> None:
        model = prunable.model
        decoder = _decoder(model)
        self._in_decoder = [id(block.out) in decoder for block in prunable]
        self._reads_text = [_reads_text(model, block) for block in prunable]

    def rows(self, block: int, values: Tensor, batch: Batch) -> Tensor:
        """The rows of ``values`` ``[..., width]`` of a block that are not padding, ``[rows, width]``."""
        real = self.mask(block, values, batch)
        rows = values.flatten(0, -2)
        return rows if real is None else rows[real.flatten().to(rows.device)]

    def mask(self, block: int, values: Tensor, batch: Batch) -> Tensor | None:
        """Which positions of ``values`` ``[batch, tokens, width]`` are real, or None for all."""
        if not self._reads_text[block]:
            return None
        real = decoder_tokens(batch) if self._in_decoder[block] else real_tokens(batch)
        by_token = values.shape[:-1] == real.shape
        flat = values.ndim == 2 and len(values) == real.numel()
        return real if by_token or flat else None


def _decoder(model: nn.Module) -> set[int]:
    """The modules of the decoder of an encoder-decoder model, by their ids."""
    found: Any = None
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        with suppress(AttributeError, NotImplementedError):
            found = cast("Any", model).get_decoder()
    if not isinstance(found, nn.Module) or found is model:
        return set()
    return {id(module) for module in found.modules()}


def _reads_text(model: nn.Module, block: PrunableBlock) -> bool:
    """Whether the innermost model around a block takes tokens, as far as it says."""
    path = block.place.split(".")
    for end in range(len(path), -1, -1):
        with suppress(AttributeError):  # a block's name need not be the path of a module
            main: object = getattr(
                model.get_submodule(".".join(path[:end])), "main_input_name", None
            )
            if isinstance(main, str):
                return main in _TEXT
    return True
