"""Calibration: sums that depend on the texts alone, and a model left exactly as it was."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from batches_by_hand import Batch, assert_same, collate, texts, trace
from torch import Tensor, nn

from cahp_opt.torch.blocks.blocks import out_weight
from cahp_opt.torch.blocks.finder import find_attention
from cahp_opt.torch.blocks.fingerprint import fingerprint
from cahp_opt.torch.calibration.attention_maps import jensen_shannon
from cahp_opt.torch.calibration.calibration import calibrate
from cahp_opt.torch.calibration.seeded_draws import digests, generators
from cahp_opt.torch.calibration.token_flows import flows
from cahp_opt.torch.evaluation.fidelity import PooledEmbedding, fidelity_of
from cahp_opt.torch.running.gates import head_mask

FAMILIES = (tiny_models.BERT, tiny_models.MPNET, tiny_models.GPT2, tiny_models.LLAMA_GQA)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_batching_padding_and_order_change_nothing(family: tiny_models.Family) -> None:
    model, rows = family.build().double(), texts()
    kwargs: dict[str, Any] = {
        "divergence_examples": 100,
        "sensitivity_examples": 100,
        "densities": (1.0, 0.5, 0.25),
    }
    whole = calibrate(model, [collate(rows)], **kwargs)
    other = calibrate(
        model, (collate(part, extra=3) for part in (rows[4:], rows[2:4], rows[:2])), **kwargs
    )
    assert_same(whole, other, rtol=1e-8)
    a = calibrate(model, [collate(rows[:3])], **kwargs)
    b = calibrate(model, [collate([row]) for row in rows[3:]], **kwargs)
    assert_same(a + b, whole, rtol=1e-8)
    assert a.salience.count == 3


def test_single_precision_is_close_to_double() -> None:
    rows = texts()
    single = calibrate(tiny_models.BERT.build(), [collate(rows)])
    double = calibrate(tiny_models.BERT.build().double(), [collate(rows)])
    for x, y in zip(single.moments, double.moments, strict=True):
        np.testing.assert_allclose(x.scatter, y.scatter, atol=2e-6 * np.abs(y.scatter).max())
    np.testing.assert_allclose(single.salience.sum, double.salience.sum, rtol=1e-3)


def test_labels_change_the_salience_only() -> None:
    model, batch = tiny_models.BERT.build().double(), collate(texts())
    labels = torch.arange(7) % 3
    plain, labelled = calibrate(model, [batch]), calibrate(model, [{**batch, "labels": labels}])
    assert not np.allclose(plain.salience.sum, labelled.salience.sum)
    for rho, total in plain.gauss_newton.items():
        np.testing.assert_array_equal(total.sum, labelled.gauss_newton[rho].sum)
    gates = torch.ones(7, 12, dtype=torch.float64, requires_grad=True)
    with head_mask(model, gates):
        loss = nn.functional.cross_entropy(model(**batch).logits, labels, reduction="sum")
    (expected,) = torch.autograd.grad(loss, gates)
    np.testing.assert_allclose(labelled.salience.sum, expected.abs().sum(dim=0), rtol=1e-9)
    with pytest.raises(ValueError, match="labels in some batches only"):
        calibrate(model, [batch, {**batch, "labels": labels}])


def test_fisher_is_the_outer_product_of_loss_gradients_under_the_masks() -> None:
    model, batch = tiny_models.BERT.build().double(), collate(texts())
    labels = torch.arange(7) % 3
    batches = [{**batch, "labels": labels}]
    stats = calibrate(model, batches, densities=(1.0, 0.5), fisher=True)
    plain = calibrate(model, batches, densities=(1.0, 0.5))
    assert not plain.fisher and list(stats.fisher) == [0.5, 1.0]
    np.testing.assert_array_equal(stats.gauss_newton[0.5].sum, plain.gauss_newton[0.5].sum)
    np.testing.assert_array_equal(stats.salience.sum, plain.salience.sum)
    contents = digests(batch)
    for rho, total in stats.fisher.items():
        rngs = generators(contents, 0, rho)
        masks = np.stack([rng.random(12) < rho for rng in rngs]).astype(np.float64)
        gates = torch.tensor(masks, requires_grad=True)
        with head_mask(model, gates):
            loss = nn.functional.cross_entropy(model(**batch).logits, labels, reduction="sum")
        (g,) = torch.autograd.grad(loss, gates)
        np.testing.assert_allclose(total.sum, g.T @ g, rtol=1e-7, atol=1e-9 * float(g.abs().max()))
        assert total.count == 7


@pytest.mark.parametrize("family", [tiny_models.BERT, tiny_models.LLAMA_GQA], ids=lambda f: f.name)
def test_fisher_does_not_depend_on_batching(family: tiny_models.Family) -> None:
    model, rows = family.build().double(), texts()

    def labelled(some: list[list[int]], extra: int) -> Batch:
        batch = collate(some, extra=extra)
        if family is tiny_models.BERT:
            return {**batch, "labels": torch.tensor([len(row) % 3 for row in some])}
        return {
            **batch,
            "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100),
        }

    whole = calibrate(model, [labelled(rows, 0)], fisher=True)
    parts = [calibrate(model, [labelled(part, 3)], fisher=True) for part in (rows[:2], rows[2:])]
    assert_same(parts[0] + parts[1], whole, rtol=1e-8)


def test_fisher_needs_labels_and_densities() -> None:
    batch = collate(texts(2))
    with pytest.raises(ValueError, match="`fisher` needs .* no `labels`"):
        calibrate(tiny_models.BERT.build(), [batch], fisher=True)
    labelled = {**batch, "labels": torch.zeros(2, dtype=torch.long)}
    with pytest.raises(ValueError, match="output can be judged by"):
        calibrate(tiny_models.BERT.build(bare=True), [labelled], fisher=True)
    with pytest.raises(ValueError, match="`densities`, which is empty"):
        calibrate(tiny_models.BERT.build(), [labelled], densities=(), fisher=True)


def test_gauss_newton_predicts_the_kl_of_small_gate_changes() -> None:
    # One text, many seeds: the mean of g g' is the Hessian of the KL in the gates.
    model, batch = tiny_models.BERT.build(num_hidden_layers=1).double(), collate(texts(1))
    total = sum(
        calibrate(model, [batch], densities=(1.0,), seed=seed).gauss_newton[1.0].sum
        for seed in range(120)
    )
    estimate = np.asarray(total) / 120
    logits = model(**batch).logits.detach()
    probabilities = logits.softmax(dim=-1)[0]

    def of_gates(gates: Tensor) -> Tensor:
        with head_mask(model, gates):
            found: Tensor = model(**batch).logits[0]
        return found

    jacobian = torch.func.jacrev(of_gates)(torch.ones(4, dtype=torch.float64))
    assert isinstance(jacobian, Tensor)
    metric = probabilities.diag() - torch.outer(probabilities, probabilities)
    exact = (jacobian.T @ metric @ jacobian).detach().numpy()
    np.testing.assert_allclose(estimate, exact, atol=0.35 * np.abs(exact).max())


def test_moments_are_those_of_the_real_tokens() -> None:
    model, rows = tiny_models.BERT.build(bare=True).double(), texts(3)
    stats = calibrate(model, [collate(rows, extra=2)], gradient_examples=0)
    seen: list[Tensor] = []
    block = find_attention(model).attention[1]
    hook = block.out.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    for row in rows:
        model(**collate([row]))
    hook.remove()
    z = torch.cat([s.reshape(-1, s.shape[-1]) for s in seen])
    moments = stats.moments[1]
    assert moments.count == stats.tokens == len(z) == sum(map(len, rows))
    np.testing.assert_allclose(moments.sum, z.sum(dim=0), rtol=1e-9)
    apart = z - z.mean(dim=0)
    np.testing.assert_allclose(moments.scatter, apart.T @ apart, rtol=1e-9, atol=1e-9)
    w = out_weight(block).detach()
    np.testing.assert_allclose(moments.readout, w.T @ w, rtol=1e-12)


def test_sensitivity_is_that_of_the_output_to_each_real_token() -> None:
    model, rows = tiny_models.BERT.build().double(), texts()
    batch = collate(rows, extra=2)
    seen = calibrate(model, [batch], sensitivity_examples=100).sensitivity
    attention = find_attention(model)
    for b, block in enumerate(attention):
        errors: list[torch.Tensor] = []
        heads: list[torch.Tensor] = []

        def add(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
            heads.append(args[0].detach())  # noqa: B023 (used up before the loop goes on)
            errors.append(torch.zeros_like(output, requires_grad=True))  # noqa: B023
            return output + errors[0]  # noqa: B023

        hook = block.out.register_forward_hook(add)
        logits = model(**batch).logits
        hook.remove()
        # The Hessian of the KL divergence, diag(p) - p p', as a sum over classes.
        p = logits.detach().softmax(dim=-1)
        weight, metric = torch.zeros(batch["input_ids"].shape), torch.zeros(32, 32)
        real = batch["attention_mask"].bool()
        for y in range(p.shape[1]):
            factor = p[:, y : y + 1].sqrt() * (
                nn.functional.one_hot(torch.tensor(y), p.shape[1]) - p
            )
            (g,) = torch.autograd.grad((logits * factor).sum(), errors[0], retain_graph=True)
            weight = weight + g.square().sum(dim=-1)
            back = g[real] @ block.out.get_parameter("weight").detach()
            metric = metric + back.T @ back
        z, w = heads[0][real], weight[real]
        assert seen[b].examples == 7
        assert seen[b].weight == pytest.approx(float(w.sum()), rel=1e-9)
        np.testing.assert_allclose(seen[b].sum, (z * w[:, None]).sum(dim=0), rtol=1e-8)
        apart = z - (z * w[:, None]).sum(dim=0) / w.sum()
        np.testing.assert_allclose(seen[b].scatter, (apart * w[:, None]).T @ apart, atol=1e-12)
        np.testing.assert_allclose(seen[b].metric, metric, atol=1e-12)


def test_weighted_moments_are_symmetric_in_single_precision() -> None:
    """A large mean leaves little of the covariance, and rounding must not tilt that."""
    model = tiny_models.BERT.build()
    for layer in model.bert.encoder.layer:
        torch.nn.init.constant_(layer.attention.self.value.bias, 3.0)
    seen = calibrate(model, [collate(texts(40))], sensitivity_examples=100).sensitivity
    for block in seen:
        np.testing.assert_array_equal(block.covariance, block.covariance.T)


def test_the_cost_of_sensitivity_predicts_the_kl_of_a_small_error() -> None:
    """White noise of one size in what a block writes: the expected KL divergence follows by hand."""
    model, batch = tiny_models.BERT.build().double(), collate(texts(40))
    seen = calibrate(model, [batch], sensitivity_examples=100).sensitivity
    fidelity, block = fidelity_of(model), find_attention(model).attention[1]
    with torch.no_grad():
        dense = fidelity.output(model(**batch), batch)
        kl, size, generator = 0.0, 1e-2, torch.Generator().manual_seed(0)
        for _ in range(50):

            def add(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
                return output + size * torch.randn(
                    output.shape, generator=generator, dtype=output.dtype
                )

            hook = block.out.register_forward_hook(add)
            kl += float(
                fidelity.distance(dense, fidelity.output(model(**batch), batch), batch).mean()
            )
            hook.remove()
    # Noise at padding is not read, and a real token's error costs its weight times the noise's variance.
    assert kl / 50 == pytest.approx(seen[1].cost * size**2, rel=0.1)


def test_a_classifier_that_reads_one_token_makes_the_others_weightless_in_its_last_block() -> None:
    model, batch = tiny_models.BERT.build().double(), collate(texts())
    attention, fidelity = find_attention(model), fidelity_of(model)
    by_block = flows(attention, batch, fidelity, 0)
    last = [f.gradient.abs().sum(dim=-1) for f in by_block[-1]]
    assert all(bool((g[:, 0] > 0).all()) and not bool(g[:, 1:].any()) for g in last)
    assert any(bool(f.gradient[:, 1:].any()) for f in by_block[0])


def test_caps_cut_inside_a_batch_and_zero_is_allowed() -> None:
    model, rows = tiny_models.BERT.build().double(), texts(5)
    stats = calibrate(model, [collate(rows[:3]), collate(rows[3:])], gradient_examples=4)
    first = calibrate(model, [collate(rows[:4])])
    assert stats.salience.count == 4 and stats.examples == 5
    np.testing.assert_allclose(stats.salience.sum, first.salience.sum, rtol=1e-8)
    none = calibrate(model, [collate(rows)], gradient_examples=0, densities=())
    assert none.salience.count == 0 and not none.gauss_newton and none.divergence is None


def test_seed_changes_the_draws_and_nothing_else() -> None:
    model, batches = tiny_models.BERT.build(), [collate(texts())]
    a, b, c = (calibrate(model, batches, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(a.gauss_newton[0.5].sum, b.gauss_newton[0.5].sum)
    assert not np.allclose(a.gauss_newton[0.5].sum, c.gauss_newton[0.5].sum)
    np.testing.assert_array_equal(a.moments[0].scatter, c.moments[0].scatter)


def test_divergence_by_hand() -> None:
    same = torch.tensor([[[0.5, 0.5], [1.0, 0.0]]])
    apart = torch.tensor([[[0.5, 0.5], [0.0, 1.0]]])
    result = jensen_shannon(torch.cat([same, same, apart]))
    assert result[0, 1] == 0 and result[0, 0] == 0
    assert result[0, 2] == pytest.approx(math.log(2) / 2) == result[2, 1]
    # padding took half of the mass of every row away: it is put back
    np.testing.assert_allclose(
        jensen_shannon(torch.cat([same, same, apart]) / 2), result, atol=1e-7
    )


def test_key_value_groups_average_their_heads() -> None:
    model = tiny_models.LLAMA_GQA.build()
    stats = calibrate(model, [collate(texts(3))], divergence_examples=2)
    assert stats.divergence is not None and stats.divergence.count == 2
    matrix = stats.divergence.mean
    assert matrix.shape == (12, 12) and (matrix <= math.log(2)).all() and matrix[0, 1] > 0
    np.testing.assert_array_equal(matrix, matrix.T)


class _Stop(BaseException):
    """Stands for Ctrl-C, which pytest would take for its own."""


def broken(kind: type[BaseException], rows: list[list[int]]) -> Iterable[Batch]:
    yield collate(rows)
    raise kind


@pytest.mark.parametrize("family", [tiny_models.BERT, tiny_models.LLAMA_GQA], ids=lambda f: f.name)
@pytest.mark.parametrize("kind", [None, RuntimeError, KeyboardInterrupt, _Stop])
def test_model_is_left_as_found(
    family: tiny_models.Family, kind: type[BaseException] | None
) -> None:
    model, rows = family.build(), texts(3)
    model.train()
    first = next(iter(model.children()))
    first.eval()
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    parameters[2].grad = torch.ones_like(parameters[2])
    before = trace(model)
    if kind is None:
        calibrate(model, [collate(rows)], divergence_examples=2)
    else:
        with pytest.raises(kind):
            calibrate(model, broken(kind, rows), divergence_examples=2)
    assert trace(model) == before


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_model_is_left_as_found_when_its_forward_fails(kind: type[BaseException]) -> None:
    model = tiny_models.BERT.build()
    remaining = 0

    def fail(*_: object) -> None:
        nonlocal remaining
        remaining -= 1
        if not remaining:
            raise kind

    for limit in (1, 2, 3, 4):  # the plain pass, both gated ones, and the one for attention maps
        remaining = limit
        hook = find_attention(model).attention[2].out.register_forward_hook(fail)
        before = trace(model)
        with pytest.raises(kind):
            calibrate(model, [collate(texts(2))], divergence_examples=2)
        assert trace(model) == before
        hook.remove()


def test_dropout_plays_no_part() -> None:
    model = tiny_models.BERT.build(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    a = calibrate(model.train(), [collate(texts(2))])
    b = calibrate(model.eval(), [collate(texts(2))])
    np.testing.assert_array_equal(a.moments[2].scatter, b.moments[2].scatter)


def test_fingerprint_tells_weights_apart() -> None:
    model = tiny_models.BERT.build()
    assert fingerprint(model) == fingerprint(tiny_models.BERT.build())
    assert fingerprint(model) != fingerprint(tiny_models.BERT.build(seed=1))
    assert calibrate(model, [collate(texts(2))]).model == fingerprint(model)
    assert fingerprint(model.bfloat16()) != fingerprint(tiny_models.BERT.build())


def test_half_precision_and_no_grad_callers() -> None:
    model, batches = tiny_models.BERT.build(), [collate(texts(3))]
    plain = calibrate(model, batches)
    with torch.no_grad():
        assert_same(calibrate(model, batches), plain)
    with torch.inference_mode():
        assert_same(calibrate(model, batches), plain)
    half = calibrate(model.bfloat16(), batches)
    assert half.salience.sum.min() > 0


def test_progress_is_reported_per_batch() -> None:
    seen: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        seen.append((stage, done, total))

    batches = [collate(texts(2)), collate(texts(2, seed=1))]
    calibrate(tiny_models.BERT.build(), batches, gradient_examples=0, progress=progress)
    calibrate(tiny_models.BERT.build(), iter(batches), gradient_examples=0, progress=progress)
    assert seen == [
        ("calibrate", 1, 2),
        ("calibrate", 2, 2),
        ("calibrate", 1, 0),
        ("calibrate", 2, 0),
    ]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "`batches` is empty"),
        ([["text"]], r"`batches\[0\]` must be a mapping"),
        ([{"input_ids": [[1, 2]]}], "no tensor among"),
        ([{"input_ids": torch.ones(0, 3, dtype=torch.long)}], "holds no examples"),
        ([collate(texts(2)), {**collate(texts(2)), "attention_mask": torch.ones(2, 1, 4)}], r"batches\[1\].*mask of shape \[2, 1, 4\]"),
        ([collate([[3, 4], []])], r"no real tokens in its examples \[1\]"),
    ],
)  # fmt: skip
def test_bad_batches(batches: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate(tiny_models.BERT.build(), batches)


def test_bad_arguments() -> None:
    model, batches = tiny_models.BERT.build(), [collate(texts(2))]
    with pytest.raises(ValueError, match=r"`densities` must lie in \(0, 1\], got 0"):
        calibrate(model, batches, densities=(0,))
    with pytest.raises(ValueError, match="`gradient_examples` must be at least 0"):
        calibrate(model, batches, gradient_examples=-1)
    with pytest.raises(ValueError, match="has no `last_hidden_state`"):
        calibrate(model, batches, fidelity=PooledEmbedding())


def test_nan_names_the_block() -> None:
    model = tiny_models.BERT.build()
    with torch.no_grad():
        find_attention(model).attention[1].out.get_parameter("weight")[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"block 'bert.encoder.layer.2.attention' hold NaN"):
        calibrate(model, [collate(texts(2))])


def test_attention_maps_of_a_model_that_hides_them() -> None:
    model = tiny_models.BERT.build()
    plain = model.forward
    model.forward = lambda output_attentions=False, **kwargs: plain(**kwargs)
    with pytest.raises(ValueError, match="calibrate with `divergence_examples=0`"):
        calibrate(model, [collate(texts(2))], divergence_examples=1)
