"""How attention modules are laid out: data only.

To support another architecture, add one entry to :data:`LAYOUTS`, which a traced run can write
(:func:`cahp_opt.torch.learn_attention`); if it stores a head count, a bias table or an argument under a
new name, the entry names it, or the vocabulary below where others may share it. An entry matches a
module by the children that it names, whatever the class of the module or of the model. Nothing here is
trusted: :func:`cahp_opt.torch.find_attention` checks every count against the shapes of the weights,
and slicing checks its result against the masked model.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import cast


class Part(Enum):
    """The kind of some rows of a projection."""

    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    EVEN = "even"
    """An equal share of the rows for every query head, whatever they are."""
    EVEN_KEY = "even_key"
    """An equal share of the rows for every key/value head."""


class Order(Enum):
    """The order of the rows of a projection with several parts."""

    PART_BY_PART = "all queries, then all keys, then all values"
    UNIT_BY_UNIT = "for every key/value head its queries, its key, its value"
    SHARD_BY_SHARD = "for every shard of the heads all queries, then all keys, then all values"


@dataclass(frozen=True)
class Projection:
    """A linear module, or a bare parameter, whose rows belong to heads.

    Args:
        path: its path inside the module that runs the attention.
        parts: the kinds of its rows, in order.
        order: how several parts are arranged.
        optional: whether the layout also fits without it.
    """

    path: str
    parts: tuple[Part, ...]
    order: Order = Order.PART_BY_PART
    optional: bool = False


@dataclass(frozen=True)
class HeadParameter:
    """A parameter with an equal share for every head along ``axis``.

    Args:
        path: its path inside the attention site, or the end of it.
        axis: the axis of the heads.
        part: whether they are query heads (EVEN) or key/value heads (EVEN_KEY).
        ndim: number of axes that the parameter must have, where others of that name have no heads.
    """

    path: str
    axis: int
    part: Part = Part.EVEN
    ndim: int | None = None


@dataclass(frozen=True)
class HeadArgument:
    """A tensor with one slice per query head that is handed to the attention module's forward.

    The heads are on axis 1 of four, or on the first of three, alone or inside the batch.

    Args:
        name: of the argument.
        beside: attributes of an enclosing module, one of which must be set, for the argument to have
            heads; empty if it always may.
    """

    name: str
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class SharedBias:
    """A table of biases in the first block whose result the other blocks take as an argument.

    Blocks with different heads cannot share it, so every block gets its own copy of the table.

    Args:
        flag: attribute that says whether a block has the table.
        tables: the modules with the table, and with others that are in the same blocks; a model need not
            have all of them.
        argument: the argument by which the result is handed on.
    """

    flag: str
    tables: tuple[str, ...]
    argument: str


@dataclass(frozen=True)
class Layout:
    """One way to lay out an attention module.

    Args:
        name: for messages.
        projections: the modules that make queries, keys and values; paths from the owner.
        owners: the module that runs the attention, from the attention site; "" is the site itself. The
            first that fits counts.
        outs: the output projection, from the site; its input is the heads' outputs side by side. The
            first that fits counts.
        when: attributes of the owner and their required values, if the children leave it open.
        parameters: those with something for every head, before those of :data:`PARAMETERS`.
        heads: attributes as in :data:`HEADS`, besides those.
        kv_heads: attributes as in :data:`KV_HEADS`, besides those.
        widths: attributes that mean heads times head width, besides :data:`WIDTHS`.
        arguments: those with something for every head, besides :data:`ARGUMENTS`.
        headless: paths, from the site, of parameters that serve all heads alike, besides :data:`HEADLESS`.
        shards: the attribute that holds the number of shards, for :attr:`Order.SHARD_BY_SHARD`. A cut stores
            the rows as those of one shard, because others would have to lose as many heads.
    """

    name: str
    projections: tuple[Projection, ...]
    owners: tuple[str, ...] = ("",)
    outs: tuple[str, ...] = (
        "output.dense",
        "o_proj",
        "out_proj",
        "c_proj",
        "dense",
        "out_lin",
        "o",
        "Wo",
        "proj",
        "projection",
        "projection_layer",
        "output_projection",
        "output_proj",
        "linear_out",
        "attention_out",
        "to_out",
        "to_out.0",
        "out",
        "output",
        "post",
    )
    when: tuple[tuple[str, object], ...] = ()
    parameters: tuple[HeadParameter, ...] = ()
    heads: tuple[str, ...] = ()
    kv_heads: tuple[str, ...] = ()
    widths: tuple[str, ...] = ()
    arguments: tuple[HeadArgument, ...] = ()
    headless: tuple[str, ...] = ()
    shards: str = ""

    def __str__(self) -> str:
        """The entry as Python, to be pasted."""
        return _python(self)


def _python(value: object) -> str:
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, tuple):
        items = [_python(item) for item in cast("tuple[object, ...]", value)]
        return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    if is_dataclass(value):
        told = [
            (f.name, getattr(value, f.name))
            for f in fields(value)
            if f.default is not getattr(value, f.name)
        ]
        return f"{type(value).__name__}({', '.join(f'{name}={_python(v)}' for name, v in told)})"
    return repr(value)


def _separate(query: str, key: str, value: str) -> tuple[Projection, ...]:
    return (
        Projection(query, (Part.QUERY,)),
        Projection(key, (Part.KEY,)),
        Projection(value, (Part.VALUE,)),
    )


_QKV = (Part.QUERY, Part.KEY, Part.VALUE)


def _fused(path: str, order: Order = Order.PART_BY_PART) -> tuple[Projection, ...]:
    return (Projection(path, _QKV, order),)


def _even(*paths: str) -> tuple[Projection, ...]:
    return tuple(Projection(path, (Part.EVEN,), optional=True) for path in paths)


_TORCH_BIAS = (Projection("in_proj_bias", _QKV, optional=True),)
_MULTI_QUERY = (("multi_query", True), ("new_decoder_architecture", False))

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "Llama, Mistral, Qwen, Gemma, BART, CLIP, Whisper, ViT",
        (
            *_separate("q_proj", "k_proj", "v_proj"),
            *_even("gate_proj", "g_proj", "relative_k_proj", "r_proj"),
        ),
    ),
    Layout(
        "BERT, RoBERTa, ELECTRA, ALBERT, Longformer",
        (
            *_separate("query", "key", "value"),
            *_even("w2e_query", "e2w_query", "e2e_query"),
            *_even("query_global", "key_global", "value_global"),
        ),
        owners=("", "self", "attention", "att", "longformer_self_attn"),
    ),
    Layout("DistilBERT, XLM", _separate("q_lin", "k_lin", "v_lin")),
    Layout("T5, MPNet", _separate("q", "k", "v")),
    Layout(
        "DeBERTa-v2, ProphetNet",
        (
            *_separate("query_proj", "key_proj", "value_proj"),
            *_even("pos_key_proj", "pos_query_proj"),
        ),
        owners=("", "self"),
    ),
    Layout(
        "DeBERTa",
        (
            *_fused("in_proj", Order.UNIT_BY_UNIT),
            *_even("q_bias", "v_bias", "pos_proj", "pos_q_proj"),
        ),
        owners=("", "self"),
    ),
    Layout("CTRL", _separate("Wq", "Wk", "Wv")),
    Layout("CPM-Ant", _separate("project_q", "project_k", "project_v")),
    Layout("Conformer", (*_separate("linear_q", "linear_k", "linear_v"), *_even("linear_pos"))),
    Layout(
        "CvT", _separate("projection_query", "projection_key", "projection_value"), ("attention",)
    ),
    Layout(
        "Granite Speech",
        (Projection("to_q", (Part.QUERY,)), Projection("to_kv", (Part.KEY, Part.VALUE))),
    ),
    Layout(
        "Deformable DETR",
        (
            Projection("sampling_offsets", (Part.EVEN,)),
            Projection("attention_weights", (Part.EVEN,)),
            Projection("value_proj", (Part.VALUE,)),
        ),
    ),
    Layout("DiT", _separate("to_q", "to_k", "to_v")),
    Layout("fused q, k, v: GPT-2", _fused("c_attn")),
    Layout(
        "head by head: GPT-BigCode with keys for every head",
        _fused("c_attn", Order.UNIT_BY_UNIT),
        when=(("multi_query", False), ("is_cross_attention", False)),
    ),
    Layout(
        "cross-attention of GPT-2",
        (Projection("q_attn", (Part.QUERY,)), Projection("c_attn", (Part.KEY, Part.VALUE))),
    ),
    Layout("fused q, k, v: ModernBERT, MPT, DBRX", _fused("Wqkv")),
    Layout("fused q, k, v: Phi-3", _fused("qkv_proj")),
    Layout(
        "shard by shard: CodeGen",
        (Projection("qkv_proj", (Part.QUERY, Part.VALUE, Part.KEY), Order.SHARD_BY_SHARD),),
        when=(("mp_num", 4),),
        shards="mp_num",
    ),
    Layout(
        "fused q, k, v: timm, BLIP, SAM, DaViT",
        _fused("qkv"),
        owners=("", "attention"),
        heads=("groups",),
    ),
    Layout("fused q, k, v: Bark", _fused("att_proj")),
    Layout(
        "torch.nn.MultiheadAttention made explicit",
        (*_fused("in_proj_weight"), *_TORCH_BIAS),
        arguments=(HeadArgument("attn_mask"),),
    ),
    Layout(
        "torch.nn.MultiheadAttention made explicit, keys of another width",
        (*_separate("q_proj_weight", "k_proj_weight", "v_proj_weight"), *_TORCH_BIAS),
        arguments=(HeadArgument("attn_mask"),),
    ),
    Layout(
        "head by head: GPT-NeoX, BLOOM, Falcon",
        _fused("query_key_value", Order.UNIT_BY_UNIT),
    ),
    Layout("multi-query Falcon", _fused("query_key_value"), when=_MULTI_QUERY),
    Layout(
        "multi-head latent attention: DeepSeek, MiniCPM3",
        (
            Projection("kv_b_proj", (Part.EVEN_KEY,)),
            *_even("q_proj", "q_b_proj", "q_gate_proj", "gate_proj", "g_proj"),
        ),
    ),
)
"""Every layout this library understands. Where several fit, the one with more conditions wins, then
the one that finds more projections."""

HEADS = ("num_heads", "num_attention_heads", "num_attn_heads", "n_heads", "n_head", "heads")
"""Attributes that hold the number of query heads."""

KV_HEADS = ("num_key_value_heads", "num_kv_heads", "kv_heads", "n_kv_heads", "kv_n_heads")
"""Attributes that hold the number of key/value heads."""

GROUPS = ("num_key_value_groups", "n_rep", "num_queries_per_kv")
"""Attributes that hold the query heads per key/value head."""

HEAD_DIMS = (
    "head_dim",
    "attention_head_size",
    "head_size",
    "key_value_proj_dim",
    "dim_head",
    "dim_per_head",
    "qk_head_dim",
    "v_head_dim",
)
"""Attributes that hold the width of one head's query, key or output."""

WIDTHS = (
    "all_head_size",
    "inner_dim",
    "split_size",
    "attn_dim",
    "attention_dim",
    "q_dim",
    "kv_dim",
)
"""Attributes that mean heads times head width; they follow the heads if their value is that."""

MAYBE_WIDTHS = (
    "embed_dim",
    "hidden_size",
    "hidden_size_output",
    "dim",
    "d_model",
    "hidden_dim",
    "n_embd",
    "channels",
    "head_size",
)
"""Attributes that mean heads times head width in some classes and the width of the model in others;
they follow the heads only where a method other than ``__init__`` reads them."""

PARAMETERS = (
    HeadParameter("sinks", 0),
    HeadParameter("pos_bias_u", 0),
    HeadParameter("pos_bias_v", 0),
    HeadParameter("bias_u", 0),
    HeadParameter("bias_v", 0, ndim=2),
    HeadParameter("logit_scale", 0),
    HeadParameter("bias_k", 2, ndim=3),
    HeadParameter("bias_v", 2, ndim=3),
    HeadParameter("gate_bias", 0, ndim=1),
    HeadParameter("continuous_position_bias_mlp.2.weight", 0),
    HeadParameter("q_norm.weight", 0, ndim=2),
    HeadParameter("k_norm.weight", 0, Part.EVEN_KEY, ndim=2),
    HeadParameter("relative_position_bias_table", 1),
    HeadParameter("relative_attention_bias.weight", 1),
    HeadParameter("global_relative_attention_bias.weight", 1),
)
"""Parameters with something for every head."""

ARGUMENTS = (
    HeadArgument("position_bias"),
    HeadArgument("alibi"),
    HeadArgument("relative_position_bias"),
    HeadArgument("rel_pos"),
    HeadArgument("rel_2d_pos"),
    HeadArgument(
        "attention_mask",
        beside=(
            "relative_position_bias",
            "shared_position_bias",
            "use_alibi",
            "attn_mask_probs",
            "box_rpb_embed_x",
            "embeddings_layer_norm",
            "encoder_attn_text",
            "text_enhancer_layer",
        ),
    ),
)
"""Arguments with something for every head."""

SHARED_BIAS = SharedBias(
    "has_relative_attention_bias",
    ("relative_attention_bias", "global_relative_attention_bias"),
    "position_bias",
)
"""T5 and its relatives."""

HEADLESS = (
    "LayerNorm",
    "layer_norm",
    "layernorm",
    "norm",
    "ln",
    "q_a_",
    "kv_a_",
    "sr",
    "sequence_reduction",
    "spatial_reduction",
    "distance_embedding",
    "dense_bias",
    "self_attn_layer_norm",
    "global_input_layer_norm",
    "continuous_position_bias_mlp",
    "emb_rel",
    "convolution_projection",
    "indexer",
)
"""Beginnings of names of children that do not know of heads, whatever their width, but for what
:data:`PARAMETERS` names."""

LASTING = (("attention_type", "original_full"),)
"""Attributes of attention that has a method to replace its modules while the model runs, and of its
configuration, with the value under which the model itself never calls that method."""
