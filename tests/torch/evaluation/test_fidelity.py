"""Fidelity: the probe has the metric of the distance, whatever the head, and figures mean what they say."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_models
import torch
from torch import Tensor, nn
from torch.nn import functional

from cahp_opt.torch.evaluation.evaluation import evaluate
from cahp_opt.torch.evaluation.fidelity import (
    ClassLogits,
    Fidelity,
    FrameLogits,
    LabelLogits,
    PixelLogits,
    PooledEmbedding,
    Regression,
    SpanLogits,
    TokenLogits,
    fidelity_of,
)
from cahp_opt.torch.evaluation.scorers import neighbour_agreement

MANY = "multi_label_classification"


def rngs(size: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, i]) for i in range(size)]


def padded(size: int, length: int) -> dict[str, Tensor]:
    mask = torch.ones(size, length, dtype=torch.long)
    mask[:, length - 1] = 0
    return {"input_ids": torch.ones_like(mask), "attention_mask": mask}


@pytest.mark.parametrize(
    ("fidelity", "shape"),
    [
        (ClassLogits(), (4,)),
        (Regression(), (3,)),
        (TokenLogits(causal=True), (4, 3)),
        (PooledEmbedding(), (5,)),
        (LabelLogits(), (4,)),
        (FrameLogits(), (3, 3)),
        (SpanLogits(), (2, 4)),
    ],
    ids=repr,
)
def test_mean_of_probes_is_hessian_of_distance(fidelity: Fidelity, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    one = torch.randn(shape, dtype=torch.float64)
    batch = padded(1, 4)

    def distance(other: Tensor) -> Tensor:
        return fidelity.distance(one[None], other.reshape(1, *shape), batch).sum()

    hessian = torch.func.jacrev(torch.func.jacrev(distance))(one.flatten())
    assert isinstance(hessian, Tensor)
    draws = 40_000
    many = one.expand(draws, *shape)
    shared = rngs(1) * draws  # one generator for all examples: independent draws, made fast
    probes = fidelity.probe(many, padded(draws, 4), shared).reshape(draws, -1)
    # A hundredth is about five standard errors of entries whose size is below one half.
    torch.testing.assert_close(probes.T @ probes / draws, hessian, atol=0.012, rtol=0.02)
    assert probes.abs().max() > 0


@pytest.mark.parametrize("classes", [2, 5, 8])
@pytest.mark.parametrize("fidelity", [ClassLogits(), LabelLogits(), Regression()], ids=repr)
def test_few_outputs_are_probed_exactly(fidelity: Fidelity, classes: int) -> None:
    torch.manual_seed(2)
    output, batch = torch.randn(3, classes, dtype=torch.float64), padded(3, 4)
    probes = torch.stack(fidelity.probes(output, batch, rngs(3)))
    for i in range(3):
        one = output[i]

        def distance(other: Tensor) -> Tensor:
            return fidelity.distance(one[None], other[None], batch).sum()  # noqa: B023

        hessian = torch.func.jacrev(torch.func.jacrev(distance))(one)
        assert isinstance(hessian, Tensor)
        torch.testing.assert_close(probes[:, i].T @ probes[:, i], hessian)


@pytest.mark.parametrize(
    ("fidelity", "shape", "number"),
    [(ClassLogits(), (9,), 4), (TokenLogits(causal=True), (4, 3), 4), (PooledEmbedding(), (5,), 1)],
    ids=repr,
)
def test_larger_outputs_are_probed_at_random(
    fidelity: Fidelity, shape: tuple[int, ...], number: int
) -> None:
    torch.manual_seed(2)
    output, batch = torch.randn(2, *shape), padded(2, 4)
    generators = rngs(2)
    one_by_one = [fidelity.probe(output, batch, generators) for _ in range(number)]
    probes = fidelity.probes(output, batch, rngs(2))
    assert len(probes) == number
    for probe, other in zip(probes, one_by_one, strict=True):
        torch.testing.assert_close(number**0.5 * probe, other)


def test_distance_to_itself_is_zero_and_kl_is_known() -> None:
    dense = torch.tensor([[0.0, 0.0], [2.0, -1.0]])
    other = torch.log(torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    batch = {"input_ids": torch.ones(2, 1, dtype=torch.long)}
    fidelity = ClassLogits()
    assert fidelity.distance(dense, dense, batch).abs().max() == 0
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert fidelity.distance(dense, other, batch)[0].item() == pytest.approx(expected, rel=1e-6)
    ruled_out = torch.tensor([[0.0, -torch.inf], [0.0, -torch.inf]])
    assert fidelity.distance(ruled_out, ruled_out, batch).tolist() == [0, 0]


def test_token_distance_ignores_padding() -> None:
    torch.manual_seed(0)
    dense, other = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    fidelity, batch = TokenLogits(causal=False), padded(2, 4)
    cut = {key: value[:, :3] for key, value in batch.items()}
    torch.testing.assert_close(
        fidelity.distance(dense, other, batch), fidelity.distance(dense[:, :3], other[:, :3], cut)
    )
    full, short = fidelity.probe(dense, batch, rngs(2)), fidelity.probe(dense[:, :3], cut, rngs(2))
    torch.testing.assert_close(full[:, :3], short)
    assert full[:, 3].abs().max() == 0


def test_spans_ignore_padding_and_add_up_both_ends() -> None:
    torch.manual_seed(4)
    start, end, other = torch.randn(3, 2, 4)
    batch, fidelity = padded(2, 4), SpanLogits()

    def output(start: Tensor, end: Tensor) -> Tensor:
        answer = SimpleNamespace(start_logits=start, end_logits=end)
        return fidelity.output(answer, batch)

    changed = start.clone()
    changed[:, 3] = 50.0  # padding, where no answer can be
    assert not fidelity.distance(output(start, end), output(changed, end), batch).any()
    both = fidelity.distance(output(start, end), output(other, other), batch)
    by_hand = [
        functional.kl_div(
            other[:, :3].log_softmax(-1), part[:, :3].softmax(-1), reduction="none"
        ).sum(-1)
        for part in (start, end)
    ]
    torch.testing.assert_close(both, by_hand[0] + by_hand[1])
    other.requires_grad_()
    softened = fidelity.softened(output(start, end), output(other, other), batch, 2.0).sum()
    (gradient,) = torch.autograd.grad(softened, other)
    assert gradient.isfinite().all() and gradient.any() and not gradient[:, 3].any()
    scorer = fidelity.scorer()
    likeliest = torch.zeros(2, 4)
    likeliest[:, 1] = 9.0
    mine, theirs = output(start, likeliest), output(start, torch.zeros(2, 4))
    scorer.add(mine, mine, torch.zeros(2), batch)
    assert scorer.scores().values() == {"kl": 0.0, "agreement": 1.0}
    scorer.add(mine, theirs, torch.ones(2), batch)
    assert scorer.scores().values() == {"kl": 0.5, "agreement": 0.5}
    assert scorer.dense_scores() is None


def test_pooled_embedding_ignores_padding() -> None:
    hidden = torch.randn(2, 4, 5)
    pooled = PooledEmbedding().output(SimpleNamespace(last_hidden_state=hidden), padded(2, 4))
    torch.testing.assert_close(pooled, hidden[:, :3].mean(dim=1))


def test_pixels_are_places_with_classes() -> None:
    logits = torch.randn(2, 3, 4, 5)
    found = PixelLogits().output(SimpleNamespace(logits=logits), {})
    torch.testing.assert_close(found[1, 7], logits[1, :, 1, 2])


def test_yes_and_no_are_judged_label_by_label() -> None:
    dense, other = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 1.0]])
    p, q = dense.sigmoid(), other.sigmoid()
    kl = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(dim=1)
    batch = {**padded(1, 4), "labels": torch.tensor([[1.0, 0.0]])}
    fidelity = LabelLogits()
    torch.testing.assert_close(fidelity.distance(dense, other, batch), kl)
    loss = fidelity.loss(dense, batch)
    assert loss is not None
    torch.testing.assert_close(loss, -(p[:, 0].log() + (1 - p[:, 1]).log()))
    scorer = fidelity.scorer()
    scorer.add(dense, other, kl, batch)
    expected = {"kl": float(kl), "agreement": 0.5, "accuracy": 0.5}
    assert scorer.scores().values() == pytest.approx(expected)
    own = scorer.dense_scores()
    assert own is not None and own.values() == {"accuracy": 1.0}
    with pytest.raises(ValueError, match="other numbers than 0 and 1"):
        fidelity.loss(dense, {**batch, "labels": torch.tensor([[2, 0]])})


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: tiny_models.BERT.build(), ClassLogits()),
        (lambda: tiny_models.BERT.build(num_labels=1), Regression()),
        (lambda: tiny_models.BERT.build(problem_type=MANY), LabelLogits()),
        (lambda: tiny_models.BERT.build(bare=True), PooledEmbedding()),
        (lambda: tiny_models.GPT2.build(), TokenLogits(causal=True)),
        (lambda: tiny_models.LLAMA_GQA.build(), TokenLogits(causal=True)),
        (lambda: tiny_models.LLAMA_GQA.build(bare=True), PooledEmbedding()),
    ],
)
def test_fidelity_fits_the_head(build: Callable[[], nn.Module], expected: Fidelity) -> None:
    assert fidelity_of(build()) == expected


def test_unknown_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="Linear, whose output no fidelity is known for; pass"):
        fidelity_of(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="has no `logits` of shape"):
        ClassLogits().output(SimpleNamespace(last_hidden_state=torch.ones(1, 2, 3)), {})


def test_causal_loss_is_shifted() -> None:
    model = tiny_models.GPT2.build()
    batch = tiny_models.batch(size=1, padded=False)
    output = model(**batch, labels=batch["input_ids"])
    loss = TokenLogits(causal=True).loss(output.logits, {**batch, "labels": batch["input_ids"]})
    assert loss is not None
    torch.testing.assert_close(loss[0], output.loss)
    assert TokenLogits(causal=True).loss(output.logits, batch) is None


def test_report_of_a_classifier() -> None:
    dense, other = tiny_models.BERT.build(), tiny_models.BERT.build(seed=1)
    batches = [{**tiny_models.batch(seed=s), "labels": torch.tensor([0, 1, 2])} for s in range(4)]
    same = evaluate(dense, tiny_models.BERT.build(), batches)
    assert same.examples == 12
    assert same.figures["kl"] == pytest.approx(0, abs=1e-6)
    assert same.figures["agreement"] == 1
    assert same.figures["accuracy"] == same.figures["dense_accuracy"]
    changed = evaluate(dense, other, batches)
    assert changed.figures["kl"] > 0
    names = ["kl", "agreement", "dense_accuracy", "accuracy", "dense_f1", "f1"]
    assert list(changed.figures) == names
    assert list(evaluate(dense, other, [tiny_models.batch()]).figures) == ["kl", "agreement"]


def test_report_of_an_encoder() -> None:
    dense = tiny_models.BERT.build(bare=True)
    batches = [tiny_models.batch(size=8, seed=s) for s in range(3)]
    same = evaluate(dense, tiny_models.BERT.build(bare=True), batches)
    assert same.figures["cosine_distance"] == pytest.approx(0, abs=1e-6)
    assert same.figures["neighbour_agreement_at_5"] == 1  # of 23 others
    changed = evaluate(dense, tiny_models.BERT.build(bare=True, seed=3), batches)
    assert changed.figures["cosine_distance"] > 0.01
    assert 0 < changed.figures["neighbour_agreement_at_5"] < 1


def test_report_of_a_causal_model() -> None:
    dense, other = tiny_models.GPT2.build(), tiny_models.GPT2.build(seed=1)
    one = tiny_models.batch(size=1, padded=False)
    report = evaluate(dense, other, [one])
    assert report.figures["dense_perplexity"] == pytest.approx(
        dense(**one, labels=one["input_ids"]).loss.exp().item(), rel=1e-4
    )
    assert report.figures["perplexity"] != report.figures["dense_perplexity"]
    mixed = tiny_models.batch(size=3, length=7)
    pooled = evaluate(dense, other, [mixed])
    rows = [
        {k: v[i : i + 1, : int(mixed["attention_mask"][i].sum())] for k, v in mixed.items()}
        for i in range(3)
    ]
    separate = evaluate(dense, other, rows)
    assert pooled.figures == pytest.approx(dict(separate.figures), rel=1e-4)


def test_neighbour_agreement_by_hand() -> None:
    line = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.1, 0.9], [0.0, 1.0]])
    assert neighbour_agreement(line, line, 1).tolist() == [1] * 4
    assert neighbour_agreement(line, line[[0, 2, 1, 3]], 1).tolist() == [0] * 4
    for k in (0, 3, 10):  # everyone is a neighbour then
        with pytest.raises(ValueError, match=f"less than the 3 other rows, .* got {k}"):
            neighbour_agreement(line, line[[0, 2, 1, 3]], k)


def test_evaluation_needs_texts() -> None:
    model = tiny_models.BERT.build()
    with pytest.raises(ValueError, match="`batches` is empty"):
        evaluate(model, model, [])
