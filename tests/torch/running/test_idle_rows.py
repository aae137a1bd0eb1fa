"""Rows without a gradient are left out of backward passes, and everything else is as it was."""

from __future__ import annotations

import contextlib

import pytest
import tiny_models
import torch
from batches_by_hand import collate, texts
from torch import Tensor
from torch.nn import functional

from cahp_opt.torch import find_prunable
from cahp_opt.torch.calibration import token_flows
from cahp_opt.torch.evaluation.fidelity import fidelity_of
from cahp_opt.torch.running import idle_rows
from cahp_opt.torch.running.idle_rows import SkippingIdleRows, used_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_are_those_of_all_rows(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_models.BERT.build().to(dtype).eval()
    prunable, batch = find_prunable(model), collate(texts(6, seed=0))
    picked = list[bool]()

    def counting(rows: Tensor) -> Tensor | None:
        found = used_rows(rows)
        picked.append(found is not None)
        return found

    monkeypatch.setattr(idle_rows, "used_rows", counting)
    skipped = token_flows.flows(prunable, batch, fidelity_of(model), 0)
    assert any(picked)
    monkeypatch.setattr(token_flows, "SkippingIdleRows", contextlib.nullcontext)
    whole = token_flows.flows(prunable, batch, fidelity_of(model), 0)
    for some, all_ in zip(skipped, whole, strict=True):
        for one, other in zip(some, all_, strict=True):
            torch.testing.assert_close(one.gradient, other.gradient)
            assert torch.equal(one.heads, other.heads)


def test_a_row_is_idle_if_all_of_it_is_zero() -> None:
    rows = torch.zeros(20, 30)
    rows[3, 29], rows[5, 0], rows[7, 12] = 1e-44, 1.0, torch.nan
    found = used_rows(rows)
    assert found is not None and found.tolist() == [3, 5, 7]
    assert used_rows(torch.zeros(0, 30)) is not None
    rows[:, 0] = 1
    rows[6] = 0
    assert used_rows(rows) is None  # of so few, picking the others would cost more


def test_linear_layers_of_all_kinds_are_differentiated() -> None:
    weight = torch.nn.Parameter(torch.randn(3, 4))
    x = torch.randn(2, 5, 4, requires_grad=True)
    with SkippingIdleRows():
        plain, named = functional.linear(x, weight), functional.linear(x, weight=weight)
        alone = functional.linear(x[0, 0], weight, torch.ones(3))
        each = torch.func.vmap(lambda row: functional.linear(row, weight))(x)
        fixed = functional.linear(x.detach(), weight)
    for found in (plain, named, each):
        (gradient,) = torch.autograd.grad(found.sum(), x)
        torch.testing.assert_close(gradient, weight.sum(0).expand_as(x))
    (gradient,) = torch.autograd.grad(alone.sum(), x)
    torch.testing.assert_close(gradient[0, 0], weight.sum(0))
    (of_weight,) = torch.autograd.grad(fixed.sum(), weight)  # nothing before it is differentiated
    torch.testing.assert_close(of_weight[0], x.detach().sum((0, 1)))


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(0, 4, 3), (5, 4, 0), (5, 0, 3)])
def test_layers_without_rows_or_features_are_differentiated(
    rows: int, inputs: int, outputs: int
) -> None:
    """Experts that no token chose, and layers of which nothing is left."""
    x = torch.zeros(rows, inputs, requires_grad=True)
    with SkippingIdleRows():
        found = functional.linear(x, torch.zeros(outputs, inputs))
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert torch.equal(gradient, torch.zeros(rows, inputs))


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_gradients_pass_through_weights_that_are_computed(part: str) -> None:
    x, given = (
        torch.ones(2, 4, requires_grad=True),
        {"weight": torch.ones(3, 4), "bias": torch.ones(3)},
    )
    with SkippingIdleRows():
        made = {name: value * x.sum() if name == part else value for name, value in given.items()}
        found = functional.linear(x, made["weight"], made["bias"])
    (gradient,) = torch.autograd.grad(found.sum(), x)
    # By the product 3 times the factor of the weight, and by that weight (8 from each of 3 x 4) or bias (2 from each of 3).
    by_hand = {"weight": 3 * 8 + 24, "bias": 3 + 6}[part]
    assert torch.equal(gradient, torch.full((2, 4), float(by_hand)))


def test_gradients_under_autocast_are_those_without_skipping() -> None:
    x, weight = torch.randn(6, 4, requires_grad=True), torch.randn(3, 4)

    def gradient() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            found = functional.linear(x, weight)
        return torch.autograd.grad(found.float().square().sum(), x)[0]

    before = gradient()
    with SkippingIdleRows():
        assert torch.equal(gradient(), before)
