"""Second moments stay second moments: large means, few rows and constant tokens cost no precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from cahp_opt import HeadStats, Moments
from cahp_opt.objectives import ExplainedVariance
from cahp_opt.stats.sensitivity import Sensitivity
from cahp_opt.torch import calibrate, find_attention, refit, slice_heads
from cahp_opt.torch.calibration.token_gradients import _Sums
from cahp_opt.torch.evaluation.evaluation import evaluate
from cahp_opt.torch.recovery.ridge import RidgeSums
from cahp_opt.torch.recovery.token_weights import TokenWeights
from cahp_opt.torch.running.centring import ScatterSums

FAMILIES = [tiny_models.BERT, tiny_models.GPT2, tiny_models.LLAMA_GQA]


def shifted(family: tiny_models.Family, size: float, dtype: torch.dtype) -> nn.Module:
    """A model whose head outputs have a mean of about ``size``."""
    model: Any = family.build()
    for block in find_attention(model).attention:
        # A constant that is added to what the heads hand over; as a large bias of the values does.
        block.out.register_forward_pre_hook(lambda _, args: (args[0] + size, *args[1:]))
    changed: nn.Module = model.to(dtype)
    return changed


def seen_by(model: nn.Module, batches: list[dict[str, Tensor]]) -> list[np.ndarray]:
    """The head outputs of every block over real tokens, in double precision."""
    found: list[list[Tensor]] = [[] for _ in find_attention(model).attention]
    handles = [
        block.out.register_forward_pre_hook(lambda _, args, own=own: own.append(args[0]))
        for block, own in zip(find_attention(model), found, strict=True)
    ]
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for handle in handles:
        handle.remove()
    real = torch.cat([batch["attention_mask"].flatten() for batch in batches]) != 0
    return [torch.cat([z.flatten(0, -2) for z in own])[real].double().numpy() for own in found]


def few(kind: str) -> list[dict[str, Tensor]]:
    """Batches that are hard on second moments."""
    if kind == "two rows":
        ids = torch.tensor([[5, 6]])
    elif kind == "two texts of one token":
        ids = torch.tensor([[5], [9]])
    elif kind == "one token throughout":
        ids = torch.full((4, 6), 3)
    else:
        return [tiny_models.batch(size=4, length=7, seed=seed) for seed in range(6)]
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]


KINDS = ["two rows", "two texts of one token", "one token throughout", "many"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0.0, 1e4])
@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        *((family, torch.float32) for family in FAMILIES),
        *((tiny_models.BERT, dtype) for dtype in (torch.bfloat16, torch.float16)),
    ],
    ids=["bert", "gpt2", "llama-gqa", "bert-bf16", "bert-f16"],
)
def test_covariances_are_those_of_the_rows(
    family: tiny_models.Family, dtype: torch.dtype, size: float, kind: str
) -> None:
    model, batches = shifted(family, size, dtype), few(kind)
    stats = calibrate(model, batches, densities=(), gradient_examples=0)
    for moments, z in zip(stats.moments, seen_by(model, batches), strict=True):
        expected = np.cov(z.T, bias=True)
        # The mean is known to the double of its size, the deviations to single precision of theirs.
        scale = max(np.abs(expected).max(), 1e-12 * size**2)
        np.testing.assert_allclose(moments.covariance, expected, rtol=0, atol=1e-5 * scale + 1e-20)
        assert np.linalg.eigvalsh(moments.covariance)[0] >= -1e-6 * scale - 1e-20
        np.testing.assert_allclose(
            moments.sum / moments.count, z.mean(axis=0), rtol=1e-6, atol=1e-6
        )
    ExplainedVariance.from_stats(stats)  # which refuses what is no covariance


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_weighted_covariances_are_those_of_the_rows(family: tiny_models.Family, kind: str) -> None:
    model, batches = shifted(family, 1e4, torch.float32), few(kind)
    weights = TokenWeights(model)
    stats = calibrate(
        model,
        batches,
        densities=(),
        gradient_examples=0,
        sensitivity_examples=100,
        token_weights=weights,
    )
    real = torch.cat([batch["attention_mask"].flatten() for batch in batches]) != 0
    for b, (seen, z) in enumerate(zip(stats.sensitivity, seen_by(model, batches), strict=True)):
        taken = [weights.taken[number][b].flatten() for number in range(len(batches))]
        w = torch.cat(taken)[real].double().numpy()
        if not w.sum():
            continue
        mean = w @ z / w.sum()
        expected = ((z - mean) * w[:, None]).T @ (z - mean) / w.sum()
        scale = max(np.abs(expected).max(), 1e-4)
        np.testing.assert_allclose(seen.covariance, expected, rtol=0, atol=1e-4 * scale)
    ExplainedVariance.from_sensitivity(stats)


def test_runs_pool_about_their_common_mean() -> None:
    """Two runs whose means are far apart, and one that saw nothing."""
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(rows, 4)) + mean for rows, mean in ((30, 1e6), (2, -1e6), (9, 3.0))]
    w = [rng.random(len(z)) for z in parts]

    def moments(z: np.ndarray) -> Moments:
        apart = z - z.mean(axis=0)
        return Moments(z.sum(axis=0), apart.T @ apart, np.eye(4), len(z))

    def sensitivity(z: np.ndarray, w: np.ndarray) -> Sensitivity:
        apart = z - w @ z / w.sum()
        scatter = (apart * w[:, None]).T @ apart
        return Sensitivity(w @ z, scatter, np.eye(4), float(w.sum()), len(z))

    nothing = Moments(np.zeros(4), np.zeros((4, 4)), np.eye(4), 0)
    z = np.concatenate(parts)
    pooled = moments(parts[0]) + nothing + moments(parts[1]) + moments(parts[2])
    np.testing.assert_allclose(pooled.covariance, np.cov(z.T, bias=True), rtol=1e-12)
    none = Sensitivity(np.zeros(4), np.zeros((4, 4)), np.eye(4), 0.0, 0)
    seen = none + sensitivity(parts[0], w[0]) + sensitivity(parts[1], w[1]) + none
    rows, weights = np.concatenate(parts[:2]), np.concatenate(w[:2])
    expected = np.cov(rows.T, bias=True, aweights=weights)
    np.testing.assert_allclose(seen.covariance, expected, rtol=1e-12)


def test_calibrating_in_two_runs_is_calibrating_once() -> None:
    model, batches = shifted(tiny_models.BERT, 1e4, torch.float32), few("many")
    options: dict[str, Any] = {"densities": (), "sensitivity_examples": 100}
    once = calibrate(model, batches, **options)
    twice = calibrate(model, batches[:1], **options) + calibrate(model, batches[1:], **options)
    for a, b in zip(once.moments, twice.moments, strict=True):
        np.testing.assert_allclose(a.covariance, b.covariance, atol=1e-6 * a.covariance.max())
    for c, d in zip(once.sensitivity, twice.sensitivity, strict=True):
        np.testing.assert_allclose(c.covariance, d.covariance, atol=1e-6 * c.covariance.max())


def test_statistics_of_earlier_releases_are_read(tmp_path: Path) -> None:
    """They hold second moments about zero."""
    from safetensors import safe_open

    model, batches = tiny_models.BERT.build().double(), few("many")
    stats = calibrate(model, batches, gradient_examples=4, sensitivity_examples=4)
    stats.save(tmp_path / "new")
    arrays = load_file(tmp_path / "new")
    reader: Any = safe_open(tmp_path / "new", framework="numpy")
    with reader as file:
        metadata = {**file.metadata(), "version": "1"}
    parts = [(f"moments/{b}", m.sum, m.count) for b, m in enumerate(stats.moments)]
    weighed = [(f"sensitivity/{b}", s.sum, s.weight) for b, s in enumerate(stats.sensitivity)]
    for name, total, weight in [*parts, *weighed]:
        scatter = arrays.pop(f"{name}/scatter")
        arrays[f"{name}/outer"] = scatter + np.outer(total, total) / weight
    save_file(arrays, tmp_path / "old", metadata=metadata)
    old = HeadStats.load(tmp_path / "old")
    for a, b in zip(stats.moments, old.moments, strict=True):
        np.testing.assert_allclose(a.covariance, b.covariance, atol=1e-12)
    for c, d in zip(stats.sensitivity, old.sensitivity, strict=True):
        np.testing.assert_allclose(c.covariance, d.covariance, atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_fit_about_large_means_is_the_textbooks(weighted: bool) -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(60, 3)) + 1e4).astype(np.float32)
    y = (x - 1e4) @ rng.normal(size=(3, 2)).astype(np.float32) - np.float32(3e4)
    w = rng.random(60).astype(np.float32) if weighted else np.ones(60, dtype=np.float32)
    sums, rest = (RidgeSums(3, 2, torch.device("cpu")) for _ in range(2))
    for into, rows in ((sums, slice(0, 30)), (rest, slice(30, 50))):
        into.add(*(torch.from_numpy(a[rows]) for a in (x, y, w)))
    sums.merge(rest)
    sums.add(*(torch.from_numpy(a[50:]) for a in (x, y, w)))
    weights, constant = sums.solve(1e-6, intercept=True)
    assert constant is not None
    wide = [a.astype(np.float64) for a in (x, y, w)]
    root = np.sqrt(wide[2] / wide[2].sum())[:, None]
    about = [(a - wide[2] @ a / wide[2].sum()) * root for a in wide[:2]]
    penalty = 1e-6 * np.trace(about[0].T @ about[0]) / 3 * np.eye(3)
    expected = np.linalg.solve(about[0].T @ about[0] + penalty, about[0].T @ about[1]).T
    np.testing.assert_allclose(weights, expected, atol=1e-5)
    off = wide[1] - wide[0] @ weights.numpy().T - constant.numpy()
    error = float((wide[2] @ (off**2).sum(axis=1)) / wide[2].sum())
    assert sums.error(weights, constant) == pytest.approx(error, rel=1e-3, abs=1e-6)


def test_a_refit_about_large_means_repairs() -> None:
    """The same function with and without a large mean that its bias takes back: the refit is as good."""
    plain = tiny_models.BERT.build()
    large: Any = tiny_models.BERT.build()
    for layer in large.bert.encoder.layer:
        value, out = layer.attention.self.value, layer.attention.output.dense
        with torch.no_grad():
            value.bias += 1e3
            out.bias -= out.weight.sum(dim=1) * 1e3
    batches = [tiny_models.batch(size=8, length=9, seed=seed) for seed in range(8)]
    losses = list[float]()
    for dense in (plain, large):
        kept = np.ones(find_attention(dense).space.n, dtype=bool)
        kept[[0, 5, 6]] = False
        small = slice_heads(dense, kept)
        refit(small, dense, batches, ridge=1e-2, feed_forward=False)
        losses.append(evaluate(dense, small, batches).figures["kl"])
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_products_of_wide_rows_are_added_up_stripe_by_stripe() -> None:
    rng = torch.Generator().manual_seed(0)
    parts = [torch.randn(count, 300, generator=rng) + 50 for count in (4, 400, 3)]
    weights = [torch.rand(len(part), generator=rng) for part in parts]
    sums = ScatterSums(300, torch.device("cpu"))
    for part, weight in zip(parts, weights, strict=True):
        sums.add(part, weight)
        found = sums.scatter.numpy()  # looking at them in between changes nothing
    rows, each = torch.cat(parts).double().numpy(), torch.cat(weights).double().numpy()
    apart = rows - each @ rows / each.sum()
    expected = apart.T @ (each[:, None] * apart)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * expected.max())


@pytest.mark.parametrize("hidden", [3, 8, 12], ids=["factors", "as wide", "wider"])
def test_gradients_are_summed_on_the_side_that_is_narrower(hidden: int) -> None:
    rng = torch.Generator().manual_seed(0)
    shapes = ((20, 8), (hidden, 8), (20, hidden), (20, hidden))
    z, readout, first, second = (torch.randn(*shape, generator=rng) for shape in shapes)
    first[5:], second[7:] = 0, 0  # most tokens say nothing
    sums, order = _Sums(8, hidden), np.array([3, 0, 1, 2, 7, 6, 5, 4])
    assert sums.add(z, [first, second], readout)
    found = sums.result(order, readout, 2)
    through = (torch.cat([first, second]) @ readout).double().numpy()[:, order]
    weights = (first.square().sum(1) + second.square().sum(1)).double().numpy()
    rows = z.double().numpy()[:, order]
    apart = rows - weights @ rows / weights.sum()
    np.testing.assert_allclose(found.metric, through.T @ through, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        found.scatter, apart.T @ (weights[:, None] * apart), rtol=1e-4, atol=1e-4
    )
    assert found.weight == pytest.approx(weights.sum())
    z[0, 0] = torch.nan
    assert not sums.add(z, [first], readout)
