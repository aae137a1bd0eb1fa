"""How attention modules are laid out: data only, one entry per layout.

An entry matches a module by the children and attributes it names, whatever the class of the module or
of the model; supporting another architecture means adding an entry to :data:`LAYOUTS`. Nothing here
is trusted: :func:`cahp_opt.torch.find_attention` checks every count against the shapes of the
projections, and slicing checks its result against the masked model.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Part(Enum):
    """What some output rows of a projection are."""

    QUERY = "query"
    KEY = "key"
    VALUE = "value"


class Order(Enum):
    """In which order the rows of a projection with several parts stand."""

    PART_BY_PART = "all queries, then all keys, then all values"
    UNIT_BY_UNIT = "for every unit its queries, its keys, its values"


@dataclass(frozen=True)
class Projection:
    """A linear module whose output rows belong to heads.

    Args:
        path: its path inside the attention site.
        parts: what its rows hold, in order.
        order: how several parts are arranged.
    """

    path: str
    parts: tuple[Part, ...]
    order: Order = Order.PART_BY_PART


@dataclass(frozen=True)
class HeadArgument:
    """A tensor handed to the attention module's forward with one slice per query head on ``axis``."""

    name: str
    axis: int


@dataclass(frozen=True)
class HeadParameter:
    """A parameter of the attention module with one slice per query head on ``axis``."""

    path: str
    axis: int


@dataclass(frozen=True)
class Layout:
    """One way to lay out an attention module. All paths are relative to the attention site.

    Args:
        name: for messages.
        out: the output projection; its input is the heads' outputs side by side.
        projections: the modules that make queries, keys and values.
        head_dim: attribute of the owner that holds the width of one head's query and key.
        owner: the module that runs the attention and holds the counts; "" is the site itself.
        heads: attributes of the owner that hold the number of query heads, where present.
        kv_heads: attributes that hold the number of key/value heads, where present.
        groups: attributes that hold the query heads per key/value head, where present.
        widths: attributes that can only mean heads times head width.
        maybe_widths: attributes that mean the same in some classes and the width of the model in
            others; rewritten only where a method other than ``__init__`` reads them.
        shared: children whose parameters are one head wide and serve all heads alike.
        untouched: children that do not depend on the heads.
        parameters: parameters indexed by head; absent ones are skipped.
        arguments: arguments of the owner's forward that are indexed by head.
    """

    name: str
    out: str
    projections: tuple[Projection, ...]
    head_dim: str
    owner: str = ""
    heads: tuple[str, ...] = ()
    kv_heads: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    widths: tuple[str, ...] = ()
    maybe_widths: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    untouched: tuple[str, ...] = ()
    parameters: tuple[HeadParameter, ...] = ()
    arguments: tuple[HeadArgument, ...] = ()


def _separate(query: str, key: str, value: str) -> tuple[Projection, ...]:
    return (
        Projection(query, (Part.QUERY,)),
        Projection(key, (Part.KEY,)),
        Projection(value, (Part.VALUE,)),
    )


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="BERT, RoBERTa, ELECTRA",
        out="output.dense",
        projections=_separate("self.query", "self.key", "self.value"),
        head_dim="attention_head_size",
        owner="self",
        heads=("num_attention_heads",),
        widths=("all_head_size",),
        untouched=("output.LayerNorm", "LayerNorm"),
    ),
    Layout(
        name="DistilBERT",
        out="out_lin",
        projections=_separate("q_lin", "k_lin", "v_lin"),
        head_dim="attention_head_size",
        heads=("n_heads",),
        maybe_widths=("dim",),
    ),
    Layout(
        name="MPNet",
        out="o",
        projections=_separate("q", "k", "v"),
        head_dim="attention_head_size",
        heads=("num_attention_heads",),
        widths=("all_head_size",),
        arguments=(HeadArgument("position_bias", axis=1),),
    ),
    Layout(
        name="GPT-2",
        out="c_proj",
        projections=(Projection("c_attn", (Part.QUERY, Part.KEY, Part.VALUE)),),
        head_dim="head_dim",
        heads=("num_heads",),
        widths=("split_size",),
        maybe_widths=("embed_dim",),
    ),
    Layout(
        name="Llama, Mistral, Qwen",
        out="o_proj",
        projections=_separate("q_proj", "k_proj", "v_proj"),
        head_dim="head_dim",
        heads=("num_heads", "num_attention_heads"),
        kv_heads=("num_key_value_heads",),
        groups=("num_key_value_groups",),
        maybe_widths=("hidden_size", "embed_dim"),
        shared=("q_norm", "k_norm"),
        parameters=(HeadParameter("sinks", axis=0),),
    ),
    Layout(
        name="GPT-NeoX",
        out="dense",
        projections=(
            Projection("query_key_value", (Part.QUERY, Part.KEY, Part.VALUE), Order.UNIT_BY_UNIT),
        ),
        head_dim="head_size",
    ),
)
"""Every layout this library understands."""
