"""How feed-forward parts of known architectures are laid out: data only.

To support another architecture, add one entry to :data:`FEEDS`. An entry matches a module by the children
that it names, whatever the class of the module or of the model. Nothing here is trusted: every count is
checked against the shapes of the weights, and slicing checks its result against the masked model.
"""

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
        inside: names of the module, one of which it must have where those of its children say little; empty
            for any.
    """

    ins: tuple[str, ...]
    out: str
    stretches: int = 1
    inside: tuple[str, ...] = ()


_SEQUENCE = ("mlp", "ffn", "ff")

FEEDS: tuple[Feed, ...] = (
    Feed(("intermediate.dense",), "output.dense"),  # BERT
    Feed(("intermediate_query.dense",), "output_query.dense"),  # BLIP-2
    Feed(("layout_intermediate.dense",), "layout_output.dense"),  # LiLT
    Feed(("lang_inter.dense",), "lang_output.dense"),  # LXMERT
    Feed(("visn_inter.dense",), "visn_output.dense"),
    Feed(("ffn",), "ffn_output"),  # ALBERT
    Feed(("intermediate_dense",), "output_dense"),  # wav2vec 2.0
    Feed(("dense.dense",), "output.dense"),  # Reformer
    Feed(("gate_proj", "up_proj"), "down_proj"),  # Llama
    Feed(("gate_up_proj",), "down_proj", stretches=2),  # Phi-3
    Feed(("up_proj",), "down_proj"),  # Nemotron
    Feed(("gate_proj",), "down_proj"),  # TimesFM
    Feed(("c_fc",), "c_proj"),  # GPT-2
    Feed(("fc1",), "fc2"),  # BART, CLIP, Whisper
    Feed(("fc1",), "fc2", stretches=2),  # Moonshine
    Feed(("fc1.proj",), "fc2", stretches=2),  # CLVP
    Feed(("fc_in",), "fc_out"),  # GPT-J
    Feed(("lin1",), "lin2"),  # DistilBERT
    Feed(("linear1",), "linear2"),  # torch's own layers, Parakeet
    Feed(("linear_1",), "linear_2"),  # Funnel
    Feed(("linear_fc1",), "linear_fc2"),  # Qwen3-VL
    Feed(("layer_1",), "layer_2"),  # XLNet
    Feed(("ffw_layer_1",), "ffw_layer_2"),  # Gemma 3n
    Feed(("dense1",), "dense2"),  # Perceiver
    Feed(("wi",), "wo"),  # T5
    Feed(("wi_0", "wi_1"), "wo"),  # T5 1.1
    Feed(("dense_h_to_4h",), "dense_4h_to_h"),  # GPT-NeoX, BLOOM, Falcon
    Feed(("Wi",), "Wo", stretches=2),  # ModernBERT
    Feed(("w1", "w3"), "w2"),  # LFM2
    Feed(("w_in.w_0", "w_in.w_1"), "w_out"),  # CPM-Ant
    Feed(("weights_in",), "weights_out", stretches=2),  # DINOv2
    Feed(("input_linear",), "output_linear", stretches=2),  # Granite
    Feed(("proj_in",), "proj_out"),  # SAM 2
    Feed(("in_proj",), "out_proj", inside=("mlp",)),  # Bark
    Feed(("intermediate",), "output", inside=("feed_forward",)),  # ProphetNet
    Feed(("layers.0",), "layers.1", inside=("mlp",)),  # D-FINE
    Feed(("0",), "2", inside=_SEQUENCE),  # timm, CTRL
    Feed(("0",), "3", inside=_SEQUENCE),  # PatchTST
)
"""The known layouts. Where several fit a part, the one with the most layers wins, then the one whose sizes
agree."""

INNER_WIDTHS = ("intermediate_size", "inner_dim", "ffn_dim", "d_ff", "hidden_features")
"""Attributes of a module around the layers that hold the number of its neurons."""

TIES = (("activation_sparsity", "keeps the neurons of a token that stand out against all others"),)
"""Attributes of a module around the layers which, where they are set, tie its neurons together, and how."""

ELSEWHERE = ("router", "norm", "projector", "aligner", "merger", "embed")
"""Parts of the names of modules with layers of the same names that are no feed-forward part of a layer."""
