"""Bugs to plant into finding, gating and slicing, each with the sentence that must give it away."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import peft
import pytest
import tiny_models as tiny
import torch
from small_builds import built
from torch import nn

from cahp_opt.arrays import Bools, Ints
from cahp_opt.space import HeadSpace, Unit
from cahp_opt.torch import Prunable, find_attention, find_prunable
from cahp_opt.torch.blocks import site_reader as reading
from cahp_opt.torch.blocks.blocks import AttentionBlock, FeedForwardBlock, Piece
from cahp_opt.torch.blocks.layouts import ARGUMENTS, LAYOUTS, PARAMETERS, Layout, Order
from cahp_opt.torch.running import gates as masking
from cahp_opt.torch.running import undo
from cahp_opt.torch.slicing import surgery
from cahp_opt.torch.slicing.argument_hooks import KeepHeads

Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Bug:
    """One planted bug.

    Args:
        build: makes the model that shows it.
        plant: puts it into the library.
        sentence: a pattern of the error's sentence.
        unit: what the units are.
        traced: whether it is a wrong layout that differentiation gives away before anything is cut.
        empty: whether the second block keeps nothing.
        neurons: whether neurons, in random groups, are cut beside heads.
    """

    build: Callable[[], nn.Module]
    plant: Plant
    sentence: str
    unit: Unit | None = None
    traced: bool = False
    empty: bool = False
    neurons: bool = False

    def blocks(self, model: nn.Module) -> Prunable:
        """The blocks to cut."""
        if self.neurons:
            return tiny.in_random_groups(find_prunable(model))
        return find_attention(model, unit=self.unit)


def alternating(space: HeadSpace, *, empty: bool = False) -> Bools:
    """Every second unit, beginning with another one in every block."""
    kept = np.zeros(space.n, dtype=bool)
    for index, where in enumerate(space.slices):
        if not (empty and index == 1):
            kept[where][1 - index % 2 :: 2] = True
    return kept


def _ordered(name: str, order: Order) -> Plant:
    """The rows of a fused projection are said to stand in another order."""

    def changed(layout: Layout) -> Layout:
        if name not in layout.name:
            return layout
        ps = tuple(dataclasses.replace(p, order=order) for p in layout.projections)
        return dataclasses.replace(layout, projections=ps)

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(reading, "LAYOUTS", tuple(map(changed, LAYOUTS)))

    return plant


def _stale(*names: str) -> Plant:
    """Attributes of attention modules keep their old values."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        put = undo.Journal.put

        def forgetful(self: undo.Journal, module: nn.Module, name: str, value: object) -> None:
            if name not in names:
                put(self, module, name, value)

        patch.setattr(undo.Journal, "put", forgetful)

    return plant


def _silently_stale(*names: str) -> Plant:
    """The same, and nobody compares attributes with weights afterwards."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        _stale(*names)(patch)
        patch.setattr(reading._Reader, "_check_counts", lambda self: None)

    return plant


def _pieces(change: Callable[[Piece], Piece | None]) -> Plant:
    """What is cut, changed piece by piece."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        pieces = reading._Reader.pieces

        def wrong(self: Any, of_head: Ints, of_kv: Ints, columns: Ints) -> Iterator[Piece]:
            changed = map(change, pieces(self, of_head, of_kv, columns))
            return (piece for piece in changed if piece is not None)

        patch.setattr(reading._Reader, "pieces", wrong)

    return plant


def _uncut(*names: str) -> Plant:
    return _pieces(lambda p: None if p.path.endswith(names) else p)


def _reordered(path: str, order: Callable[[Ints], Ints]) -> Plant:
    def change(p: Piece) -> Piece:
        if not p.path.startswith(path):
            return p
        return dataclasses.replace(p, unit_of=order(p.unit_of))

    return _pieces(change)


def _strided(unit_of: Ints) -> Ints:
    """Unit 0, 1, 2, ... in turn instead of unit after unit."""
    units = int(unit_of.max()) + 1
    return np.arange(len(unit_of), dtype=np.int64) % units


def _in_halves(unit_of: Ints) -> Ints:
    """All units in the first half, and again in the second."""
    return np.concatenate([unit_of[::2], unit_of[::2]])


def _without_argument(name: str) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        rest = tuple(a for a in ARGUMENTS if a.name != name)
        patch.setattr(surgery, "ARGUMENTS", rest)

    return plant


def _first_slices(patch: pytest.MonkeyPatch) -> None:
    """An argument with heads is cut to its first ones."""

    class Wrong(KeepHeads):
        def __init__(self, name: str, position: int, ids: list[int], heads: int) -> None:
            super().__init__(name, position, list(range(len(ids))), heads)

    patch.setattr(surgery, "KeepHeads", Wrong)


def _first_columns(patch: pytest.MonkeyPatch) -> None:
    """The output projection keeps its first columns."""
    cut = surgery._cut_piece

    def wrong(site: nn.Module, piece: Piece, staying: Bools, journal: undo.Journal) -> None:
        if piece.path.startswith("out_lin"):
            early = np.arange(len(piece.unit_of)) < staying[piece.unit_of].sum()
            unit_of = np.where(early, staying.argmax(), staying.argmin())
            piece = dataclasses.replace(piece, unit_of=unit_of)
        cut(site, piece, staying, journal)

    patch.setattr(surgery, "_cut_piece", wrong)


def _gate_over_dimensions(patch: pytest.MonkeyPatch) -> None:
    """The gate runs over the dimensions of a head, not over the heads."""

    class Wrong(masking._Gate):
        def __init__(self, gates: torch.Tensor, units: torch.Tensor) -> None:
            each = int((units == units.min()).sum())
            super().__init__(gates, units.reshape(-1, each).T.reshape(-1))

    patch.setattr(masking, "_Gate", Wrong)


def _slots_as_groups(patch: pytest.MonkeyPatch) -> None:
    """Query head ``h`` is said to be in slot ``h // groups``, not ``h % slots``."""
    read = reading.read_block

    def wrong(name: str, site: nn.Module, layout: Layout, unit: Unit | None) -> AttentionBlock:
        block = read(name, site, layout, unit)
        if block.unit is not Unit.QUERY_SLOT:
            return block
        reader = reading._Reader(site, layout)
        of_head = np.arange(block.heads) // block.kv_heads
        columns = np.repeat(of_head, block.head_dim)
        pieces = reader.pieces(of_head, np.full(block.kv_heads, -1), columns)
        return dataclasses.replace(block, columns=columns, pieces=tuple(pieces))

    patch.setattr("cahp_opt.torch.blocks.finder.read_block", wrong)


def _bias_tied(patch: pytest.MonkeyPatch) -> None:
    """Blocks go on taking the biases of the first one."""
    patch.setattr(surgery, "untied", lambda attention, kept, journal: attention.blocks)


def _bias_axis(patch: pytest.MonkeyPatch) -> None:
    """The table of biases is cut by distance, not by head."""
    name = "relative_position_bias_table"
    wrong = [dataclasses.replace(p, axis=0) if p.path == name else p for p in PARAMETERS]
    patch.setattr(reading, "PARAMETERS", tuple(wrong))


def _config_as_it_was(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(surgery, "config_view", lambda config, counts: config)


def _ghost_alive(patch: pytest.MonkeyPatch) -> None:
    """The unit that keeps an empty block's shapes goes on adding to the output."""
    patch.setattr(surgery, "_out_pieces", lambda block: iter(()))


def _adapted() -> nn.Module:
    return _with_adapters("q_proj", "v_proj", "o_proj")


def _with_adapters(*targets: str) -> nn.Module:
    config = peft.LoraConfig(r=3, target_modules=list(targets))
    adapted: Any = peft.get_peft_model(tiny.LLAMA_GQA.build(bare=True, hidden_size=24), config)
    model: nn.Module = adapted.get_base_model()  # the wrapper hides what the model takes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tiny.stir(model)
    return model.eval()


# --- neurons --------------------------------------------------------------------------------------


def _neurons(change: Callable[[Piece, Ints], Piece | None]) -> Plant:
    """What is cut with neurons, changed piece by piece; it is told the unit of every neuron."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        grouped = FeedForwardBlock.grouped

        def wrong(block: FeedForwardBlock, *args: Any) -> FeedForwardBlock:
            found = grouped(block, *args)
            changed = (change(piece, found.columns) for piece in found.pieces)
            return dataclasses.replace(found, pieces=tuple(p for p in changed if p is not None))

        patch.setattr(FeedForwardBlock, "grouped", wrong)

    return plant


def _neurons_uncut(*names: str) -> Plant:
    return _neurons(lambda p, _: None if p.path.endswith(names) else p)


def _of_other_neurons(name: str, order: Callable[[Ints], Ints]) -> Plant:
    """The rows or columns of a layer are said to be of other neurons."""

    def change(p: Piece, columns: Ints) -> Piece:
        return dataclasses.replace(p, unit_of=order(columns)) if name in p.path else p

    return _neurons(change)


def _second_half_reversed(columns: Ints) -> Ints:
    return np.concatenate([columns, columns[::-1]])


def _gate_beside_up(columns: Ints) -> Ints:
    """One row of the gate and one of what it gates in turn, as in some experts."""
    return np.repeat(columns, 2)


def _unordered(*names: str) -> Plant:
    """Some tensors keep the order in which their neurons stand."""
    return _neurons(
        lambda p, _: dataclasses.replace(p, order=None) if p.path.startswith(names) else p
    )


def _groups_of_other_widths(patch: pytest.MonkeyPatch) -> None:
    """The first group cut has two neurons of the second, whatever width was asked for."""

    def change(p: Piece, columns: Ints) -> Piece:
        moved = np.concatenate([np.where(columns == 1)[0][:2]])
        unit_of = p.unit_of.copy()
        for start in range(0, len(unit_of), len(columns)):
            unit_of[start + moved] = 0
        return dataclasses.replace(p, unit_of=unit_of)

    _neurons(change)(patch)


def _gates_as_neurons_stand(patch: pytest.MonkeyPatch) -> None:
    """The gates forget the order of the neurons."""

    class Wrong(masking._Gate):
        def __init__(self, gates: torch.Tensor, units: torch.Tensor) -> None:
            super().__init__(gates, units.sort().values)

    patch.setattr(masking, "_Gate", Wrong)


class _Wide(nn.Module):
    """A feed-forward part whose forward reads the number of its neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.intermediate_size = tiny.INNER
        self.fc1 = nn.Linear(tiny.HIDDEN, tiny.INNER)
        self.fc2 = nn.Linear(tiny.INNER, tiny.HIDDEN)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        inner = self.fc1(hidden_states).relu().view(-1, self.intermediate_size)
        out: torch.Tensor = self.fc2(inner).view(hidden_states.shape)
        return out


def _reading_its_width() -> nn.Module:
    model: Any = tiny.LLAMA_GQA.build(bare=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in model.layers:
            layer.mlp = _Wide()
            tiny.stir(layer.mlp)
    return model.eval()  # type: ignore[no-any-return]


def _adapted_neurons() -> nn.Module:
    return _with_adapters("gate_proj", "up_proj", "down_proj")


_DIFFERS = "differs from the masked one .*"
_CANNOT = "cannot run: "

BUGS: dict[str, Bug] = {
    "GPT-2's fused rows head by head": Bug(
        tiny.GPT2.build, _ordered("GPT-2", Order.UNIT_BY_UNIT), _DIFFERS + "h.0.attn", traced=True
    ),
    "GPT-NeoX's fused rows part by part": Bug(
        tiny.GPT_NEOX.build,
        _ordered("GPT-NeoX", Order.PART_BY_PART),
        _DIFFERS + "layers.0.attention",
        traced=True,
    ),
    "Phi-3's fused rows head by head": Bug(
        lambda: built("Phi3"), _ordered("Phi-3", Order.UNIT_BY_UNIT), _DIFFERS, traced=True
    ),
    "BERT's head count stale": Bug(
        tiny.BERT.build,
        _stale("num_attention_heads"),
        "contradicts itself.*attention_head_size",
    ),
    "DeBERTa's head count stale": Bug(
        lambda: built("DebertaV2"), _stale("num_attention_heads"), "contradicts itself"
    ),
    "DeBERTa's head count stale, and nobody looks": Bug(
        lambda: built("DebertaV2"), _silently_stale("num_attention_heads"), _DIFFERS
    ),
    "query heads per group stale": Bug(
        tiny.LLAMA_GQA.build,
        _stale("num_key_value_groups"),
        "contradicts itself.*2 key/value heads",
        unit=Unit.QUERY_SLOT,
    ),
    "MPNet's width stale": Bug(tiny.MPNET.build, _silently_stale("all_head_size"), _CANNOT),
    "GPT-2's split stale": Bug(tiny.GPT2.build, _silently_stale("split_size"), _CANNOT),
    "MPNet's bias argument with all heads": Bug(
        tiny.MPNET.build, _without_argument("position_bias"), _CANNOT
    ),
    "MPNet's bias argument with the first heads": Bug(tiny.MPNET.build, _first_slices, _DIFFERS),
    "BLOOM's slopes with all heads": Bug(
        lambda: built("Bloom"), _without_argument("alibi"), _CANNOT
    ),
    "Llama's query heads with other keys": Bug(
        tiny.LLAMA_GQA.build, _reordered("q_proj", _strided), _DIFFERS, traced=True
    ),
    "query slots read as groups": Bug(
        tiny.LLAMA_GQA.build, _slots_as_groups, _DIFFERS, unit=Unit.QUERY_SLOT, traced=True
    ),
    "gates over the dimensions of a head": Bug(tiny.BERT.build, _gate_over_dimensions, _DIFFERS),
    "columns of other heads": Bug(tiny.DISTILBERT.build, _first_columns, _DIFFERS),
    "T5's table uncut": Bug(
        lambda: built("T5"), _uncut("relative_attention_bias.weight"), _CANNOT, traced=True
    ),
    "T5's table shared by blocks with other heads": Bug(lambda: built("T5"), _bias_tied, _DIFFERS),
    "Swin's table cut by distance": Bug(lambda: built("Swin"), _bias_axis, _CANNOT, traced=True),
    "Phi-3's configuration as it was": Bug(
        lambda: built("Phi3"), _config_as_it_was, f"{_CANNOT}|contradicts itself"
    ),
    "gpt-oss's sinks uncut": Bug(lambda: built("GptOss"), _uncut("sinks"), _CANNOT, traced=True),
    "key bias uncut": Bug(tiny.BERT.build, _uncut("key.bias"), _CANNOT, traced=True),
    "LoRA rows uncut": Bug(_adapted, _uncut("lora_B.default.weight"), _CANNOT, traced=True),
    "LoRA columns uncut": Bug(_adapted, _uncut("lora_A.default.weight"), _CANNOT, traced=True),
    "latent keys in turn": Bug(
        lambda: built("DeepseekV3"), _reordered("kv_b_proj", _strided), _DIFFERS, traced=True
    ),
    "gates of Qwen3-Next behind all queries": Bug(
        lambda: built("Qwen3Next"), _reordered("q_proj", _in_halves), _DIFFERS, traced=True
    ),
    "an empty block that goes on": Bug(tiny.BERT.build, _ghost_alive, _DIFFERS, empty=True),
    "Phi-3's gate with other neurons than what it gates": Bug(
        lambda: built("Phi3"),
        _of_other_neurons("gate_up_proj", _second_half_reversed),
        _DIFFERS + "mlp.down_proj",
        traced=True,
        neurons=True,
    ),
    "ModernBERT's gate and what it gates in turn": Bug(
        lambda: built("ModernBert"),
        _of_other_neurons("Wi", _gate_beside_up),
        _DIFFERS + "mlp.Wo",
        traced=True,
        neurons=True,
    ),
    "Llama's gate cut, and not what it gates": Bug(
        tiny.LLAMA_GQA.build,
        _neurons_uncut("up_proj.weight"),
        "contradicts itself.*up_proj has 40 output rows",
        traced=True,
        neurons=True,
    ),
    "bias of cut rows uncut": Bug(
        tiny.named("opt").build, _neurons_uncut("fc1.bias"), _CANNOT, traced=True, neurons=True
    ),
    "columns in another order than the rows": Bug(
        tiny.GPT2.build, _unordered("c_proj"), _DIFFERS + "mlp.c_proj", neurons=True
    ),
    "rows in another order than the columns": Bug(
        tiny.BERT.build, _unordered("intermediate"), _DIFFERS + "output.dense", neurons=True
    ),
    "columns of other neurons": Bug(
        tiny.DISTILBERT.build,
        _of_other_neurons("lin2", lambda columns: columns[::-1]),
        _DIFFERS + "ffn.lin2",
        traced=True,
        neurons=True,
    ),
    "groups of another width": Bug(
        tiny.BERT.build,
        _groups_of_other_widths,
        "contradicts itself.*22 neurons, which 5 groups",
        traced=True,
        neurons=True,
    ),
    "gates that forget the order of the neurons": Bug(
        tiny.BERT.build, _gates_as_neurons_stand, _DIFFERS + "output.dense", neurons=True
    ),
    "number of neurons stale": Bug(
        _reading_its_width, _stale("intermediate_size"), _CANNOT, neurons=True
    ),
    "LoRA rows of neurons uncut": Bug(
        _adapted_neurons,
        _neurons_uncut("up_proj.lora_B.default.weight"),
        _CANNOT,
        traced=True,
        neurons=True,
    ),
    "LoRA columns of neurons uncut": Bug(
        _adapted_neurons,
        _neurons_uncut("down_proj.lora_A.default.weight"),
        _CANNOT,
        traced=True,
        neurons=True,
    ),
    "an empty feed-forward part that goes on": Bug(
        tiny.BERT.build, _ghost_alive, _DIFFERS, empty=True, neurons=True
    ),
}
