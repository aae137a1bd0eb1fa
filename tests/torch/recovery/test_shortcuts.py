"""Running on from the inputs of a linear layer that are known: the same as running its layer again."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor, nn

from cahp_opt.runs.recovery import Weighting
from cahp_opt.torch.blocks.finder import find_prunable
from cahp_opt.torch.recovery import side_by_side
from cahp_opt.torch.recovery.refitting import refit
from cahp_opt.torch.recovery.shortcuts import find_shortcuts
from cahp_opt.torch.slicing.slicing import slice_found

TRIED = 2  # runs over a few examples, to find what can be left out

pytestmark = pytest.mark.usefixtures("threads")


def without(*_: Any) -> dict[str, Any]:
    return {}


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("bert", ("attention.self.query", "intermediate.dense")),
        ("llama-gqa", ("q_proj", "up_proj")),
        ("gpt2", ("attn.c_attn", "mlp.c_fc")),
    ],
)
def test_a_refit_is_the_same_to_the_bit_and_runs_most_of_a_layer_once(
    name: str, reads: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    family = tiny_models.named(name)
    dense = family.build()
    prunable = tiny_models.in_random_groups(find_prunable(dense))
    kept = tiny_models.uneven(prunable.space, empty=2)
    batches = [family.batch(size=5, length=5, seed=seed) for seed in range(2)]

    def refitted() -> tuple[nn.Module, Counter[str]]:
        small, runs = slice_found(prunable, kept), Counter[str]()
        for path, module in small.model.named_modules():
            module.register_forward_hook(lambda *_, path=path: runs.update([path]))
        refit(small, prunable, batches, weighting=Weighting.EQUAL)
        return small.model, runs

    fast, once = refitted()
    monkeypatch.setattr(side_by_side, "find_shortcuts", without)
    slow, _ = refitted()
    for path, values in slow.state_dict().items():
        assert torch.equal(values, fast.state_dict()[path]), path
    behind = [path for path in once if path.endswith(reads) and ".0." not in path]
    assert len(behind) > 1 and {once[path] for path in behind} == {len(batches) + TRIED}


class Noting(nn.Module):
    """Keeps something of its inputs beside what it returns."""

    def forward(self, x: Tensor) -> Tensor:
        self.noted = x[0]
        return x.tanh()


class Layer(nn.Module):
    """Adds to its input what a linear layer makes of it, and what was kept in the part before if it ``uses`` it."""

    def __init__(self, uses: bool) -> None:
        super().__init__()
        self.before, self.out, self.uses = Noting(), nn.Linear(4, 4), uses

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = hidden + self.out(self.before(2 * hidden))
        return result + self.before.noted * self.uses


class Stack(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("examples", [1, 2])
def test_a_module_that_keeps_something_for_others_is_no_shortcut(examples: int) -> None:
    torch.manual_seed(0)
    layers = [Layer(uses=False), Layer(uses=True)]
    rows = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 0.0, 2.0]])
    model, batch = Stack(*layers), {"x": rows[:examples]}
    with torch.no_grad():
        found = find_shortcuts(model, layers, ["layers.0.out", "layers.1.out"], batch)
    assert set(found) == {"layers.0.out"}
