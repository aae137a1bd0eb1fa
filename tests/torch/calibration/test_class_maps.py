"""Signatures: attention maps by class, cropped to real tokens, whatever the batching."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from batches_by_hand import collate, texts

from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.torch.calibration.calibration import calibrate
from cahp_opt.torch.calibration.class_maps import resized

FAMILIES = (tiny_models.BERT, tiny_models.MPNET, tiny_models.GPT2, tiny_models.LLAMA_GQA)
LABELS = [0, 2, 0, 1, 2, 2, 0]


def measured(model: Any, *parts: list[int], extra: int = 0) -> HeadStats:
    rows = texts()
    batches = [
        {
            **collate([rows[i] for i in part], extra=extra),
            "labels": torch.tensor([LABELS[i] for i in part]),
        }
        for part in parts
    ]
    return calibrate(model, batches, gradient_examples=0, densities=(), signature_size=5)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_signatures_are_those_of_every_text_alone(family: tiny_models.Family) -> None:
    model = family.build(attn_implementation="eager").double()
    found = measured(model, [0, 1, 2, 3], [4, 5, 6], extra=2).signatures
    assert found is not None and found.counts.tolist() == [3, 1, 3]
    maps = []
    for row in texts():
        with torch.no_grad():
            attentions = model(**collate([row]), output_attentions=True).attentions
        units = found.n // len(attentions)
        by_unit = [a[0].unflatten(0, (units, -1)).mean(dim=1) for a in attentions]
        maps.append(resized(torch.cat(by_unit), 5))
    for label in range(3):
        own = np.array([m for m, c in zip(maps, LABELS, strict=True) if c == label])
        np.testing.assert_allclose(found.mean[label], own.mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(found.variance[label], own.var(axis=0), atol=1e-12)
    assert found.variance.max() > 1e-6


def test_every_patch_of_an_image_counts() -> None:
    family = tiny_models.named("vit")
    model, batch = family.build().double(), family.batch(size=2)
    batch = {key: value.double() for key, value in batch.items()}
    labels = torch.tensor([1, 0])
    found = calibrate(
        model, [{**batch, "labels": labels}], gradient_examples=0, signature_size=4
    ).signatures
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(**batch, output_attentions=True).attentions
    assert found is not None
    for row, label in enumerate(labels.tolist()):
        maps = resized(torch.cat([a[row] for a in attentions]), 4)
        np.testing.assert_allclose(found.mean[label], maps, atol=1e-12)


def test_runs_add_up_where_one_has_not_met_every_class() -> None:
    model = tiny_models.BERT.build().double()
    whole = measured(model, [0, 1, 2, 3, 4, 5, 6]).signatures
    added = (measured(model, [0, 2], [3]) + measured(model, [6, 5], [1, 4])).signatures
    assert whole is not None and added is not None
    assert np.array_equal(added.counts, whole.counts)
    np.testing.assert_allclose(added.mean, whole.mean, atol=1e-12)
    np.testing.assert_allclose(added.squares, whole.squares, atol=1e-12)


def test_resizing_is_bilinear() -> None:
    identity = resized(torch.eye(2, dtype=torch.float64)[None], 4)[0]
    corner = [1, 0.75, 0.25, 0]  # sample points at -1/4 (the edge), 1/4, 3/4, 5/4 (the edge)
    np.testing.assert_allclose(identity[0], corner)
    np.testing.assert_allclose(identity[1], [0.75, 0.625, 0.375, 0.25])


def test_what_signatures_need_is_told() -> None:
    model, batch = tiny_models.BERT.build(), collate(texts(3))
    for labels, words in (
        (None, "have no `labels`.*`signature_size=0`"),
        (torch.rand(3, 3), r"`labels` of shape \[3, 3\].*not class numbers"),
        (torch.tensor([0, 1, -100]), "not class numbers"),
    ):
        given = batch if labels is None else {**batch, "labels": labels}
        with pytest.raises(ValueError, match=words):
            calibrate(model, [given], gradient_examples=0, signature_size=4)
    with pytest.raises(ValueError, match="`signature_size` must be at least 0"):
        calibrate(model, [batch], signature_size=-1)
    plain = model.forward
    model.forward = lambda output_attentions=False, **kwargs: plain(**kwargs)
    with pytest.raises(ValueError, match="calibrate with `signature_size=0`"):
        calibrate(
            model,
            [{**batch, "labels": torch.tensor([0, 1, 1])}],
            gradient_examples=0,
            signature_size=4,
        )
