"""How feed-forward parts of known architectures are laid out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Feed:
    """One way to lay out a feed-forward part: layers that make the neurons, and one that reads them.

    Args:
        ins: the layers whose rows are the neurons, by their paths from the smallest module that holds the
            part; with several, one of them gates the others.
        out: path of the output layer, whose columns are the neurons.
        stretches: of the rows of a single layer of ``ins``, one row for every neuron in each: gate and up in
            one layer are 2.
    """

    ins: tuple[str, ...]
    out: str
    stretches: int = 1


FEEDS: tuple[Feed, ...] = (
    Feed(("intermediate.dense",), "output.dense"),  # BERT
    Feed(("gate_proj", "up_proj"), "down_proj"),  # Llama
    Feed(("gate_up_proj",), "down_proj", stretches=2),  # Phi-3
    Feed(("up_proj",), "down_proj"),  # Nemotron
    Feed(("c_fc",), "c_proj"),  # GPT-2
    Feed(("fc1",), "fc2"),  # BART, CLIP, Whisper
    Feed(("fc_in",), "fc_out"),  # GPT-J
    Feed(("lin1",), "lin2"),  # DistilBERT
    Feed(("wi",), "wo"),  # T5
    Feed(("wi_0", "wi_1"), "wo"),  # T5 1.1
    Feed(("dense_h_to_4h",), "dense_4h_to_h"),  # GPT-NeoX, BLOOM, Falcon
    Feed(("Wi",), "Wo", stretches=2),  # ModernBERT
)
"""The known layouts. A part that fits several is of the one with the most layers."""

INNER_WIDTHS = ("intermediate_size", "inner_dim", "ffn_dim", "d_ff", "hidden_features")
"""Attributes of a module around the layers that hold the number of its neurons."""
