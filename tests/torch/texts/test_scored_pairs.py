"""Pairs with scores: a model that embeds texts embeds both by themselves, and is judged by their cosine."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import tiny_models
import torch
from command_line import make_tokenizer, sentences
from torch.nn import functional

from cahp_opt.runs.plan import Reading
from cahp_opt.runs.texts import Example, TextError, TextSplit
from cahp_opt.torch.evaluation.evaluation import Judge, evaluate
from cahp_opt.torch.evaluation.fidelity import ClassLogits, PooledEmbedding
from cahp_opt.torch.pipeline.run import EncodedTexts, Named
from cahp_opt.torch.running.batches import PAIR_SCORES, inputs_of
from cahp_opt.torch.texts.encoding import encode_and_count
from cahp_opt.torch.texts.scored_pairs import PAIR_NOTE, are_scored_pairs

STATS: Any = import_module("scipy.stats")
TEXTS = sentences(80)
PAIRS = [
    Example(one, other, label=str(i % 7 / 2))
    for i, (one, other) in enumerate(zip(TEXTS[:40], TEXTS[40:], strict=True))
]
SPLIT = TextSplit(tuple(PAIRS[8:]), tuple(PAIRS[:8]))


def held_out(size: int = 6) -> list[dict[str, Any]]:
    """The texts of three pairs in every batch."""
    model = tiny_models.BERT.build(bare=True)
    found = encode_and_count(
        PAIRS, make_tokenizer(), model, batch_size=size, max_length=16, scored_pairs=True
    )
    assert found.counts.texts == 40
    return found.batches


def test_texts_of_a_pair_stand_one_after_the_other() -> None:
    tokenizer, batches = make_tokenizer(), held_out()
    assert {len(batch["input_ids"]) for batch in batches} <= {6, 2}
    seen = dict[tuple[str, str], float]()
    for batch in batches:
        assert PAIR_SCORES not in inputs_of(batch) and "labels" not in batch
        texts = tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
        scores = batch[PAIR_SCORES].tolist()
        assert scores[::2] == scores[1::2]
        seen |= dict(zip(zip(texts[::2], texts[1::2], strict=True), scores[::2], strict=True))
    assert seen == {(e.text, e.pair): float(e.label or "") for e in PAIRS}


def test_the_correlation_is_that_of_the_cosines() -> None:
    dense, other = (tiny_models.BERT.build(bare=True, seed=seed).eval() for seed in (0, 3))
    batches = held_out()
    found = evaluate(dense, other, batches)
    cosines, scores = list[float](), list[float]()
    with torch.no_grad():
        for batch in batches:
            vectors = PooledEmbedding().output(other(**inputs_of(batch)), batch)
            cosines += functional.cosine_similarity(vectors[::2], vectors[1::2]).tolist()
            scores += batch[PAIR_SCORES][::2].tolist()
    names = ["cosine_distance", "neighbour_agreement_at_10", "dense_spearman", "spearman"]
    assert list(found.figures) == names and found.examples == 40
    expected = STATS.spearmanr(cosines, scores).statistic
    assert found.figures["spearman"] == pytest.approx(expected)
    plain = evaluate(dense, other, [inputs_of(batch) for batch in batches])
    assert plain.examples == 80
    for name in names[:2]:  # a mean over pairs is one over their texts
        assert plain.figures[name] == pytest.approx(found.figures[name])
    assert Judge(dense, batches).unpruned.headline.name == "spearman"


def test_both_texts_are_calibrated_on_unless_they_are_held_out() -> None:
    model: Any = tiny_models.BERT.build(bare=True)
    shared = Example(PAIRS[0].text, PAIRS[9].text, label="1")
    texts = TextSplit((*SPLIT.calibration, shared), SPLIT.held_out)
    named = Named("model", model, make_tokenizer())
    found = EncodedTexts.of(named, texts, Reading(16, batch_size=8), 0, PooledEmbedding())
    assert found.number == 64 and PAIR_NOTE in found.notes
    assert all(PAIR_SCORES in batch for batch in found.held_out)
    assert not any(PAIR_SCORES in batch for batch in found.calibration)
    alone = TextSplit((PAIRS[0],), (PAIRS[0],))
    with pytest.raises(TextError, match="every text of the pairs to calibrate on is in a held-out"):
        EncodedTexts.of(named, alone, Reading(16, batch_size=8), 0, PooledEmbedding())


def test_what_are_scored_pairs() -> None:
    assert are_scored_pairs(SPLIT, PooledEmbedding())
    assert not are_scored_pairs(SPLIT, ClassLogits())
    for odd in (Example("a", "b"), Example("a", "b", "alike"), Example("a", None, "1")):
        assert not are_scored_pairs(TextSplit((odd, *PAIRS), ()), PooledEmbedding())
        with pytest.raises(TextError, match="two texts with a finite number as label, got"):
            encode_and_count(
                [odd],
                make_tokenizer(),
                tiny_models.BERT.build(bare=True),
                batch_size=2,
                max_length=8,
                scored_pairs=True,
            )


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (torch.ones(3), r"one number per text, an even number of them, got \[3\] for 4 texts"),
        ([1.0] * 4, "one number per text"),
        (torch.tensor([1.0, 1.0, 2.0, 3.0]), "the same for both texts of a pair"),
        (torch.tensor([1.0, 1.0, torch.nan, torch.nan]), "must be finite"),
    ],
)
def test_bad_scores_are_refused(scores: object, words: str) -> None:
    model = tiny_models.BERT.build(bare=True)
    with pytest.raises(ValueError, match=words):
        evaluate(model, model, [{**tiny_models.batch(size=4), PAIR_SCORES: scores}])


def test_scores_in_some_batches_only_are_refused() -> None:
    model = tiny_models.BERT.build(bare=True)
    plain = tiny_models.batch(size=4)
    with pytest.raises(ValueError, match="`pair_scores` in some batches only"):
        evaluate(model, model, [{**plain, PAIR_SCORES: torch.ones(4)}, plain])
