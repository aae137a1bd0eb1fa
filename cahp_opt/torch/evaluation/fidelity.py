"""Fidelity: how far a changed model's output is from the dense model's.

Calibration and evaluation need to know nothing else about a task. Every fidelity gives the distance
per example and a *probe*: a random vector ``u`` for which ``E[u u']`` is the Hessian of the
distance at the dense output (Schraudolph 2002). With ``g = J' u`` for the Jacobian ``J`` of the
output by the gates, ``E[g g']`` is the Gauss-Newton matrix of the distance, estimated with one
backward pass per probe, whatever the size of the output.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cahp_opt.stats.pooling import Pooling, in_words
from cahp_opt.torch.evaluation.embedders import embedder_of, pooled
from cahp_opt.torch.evaluation.labels import class_numbers, numbers, yes_or_no
from cahp_opt.torch.evaluation.scorers import (
    ClassScorer,
    EmbeddingScorer,
    FrameScorer,
    LabelScorer,
    NextTokenScorer,
    NumberScorer,
    Scorer,
    SpanScorer,
    TokenScorer,
)
from cahp_opt.torch.running.batches import IGNORED, Batch, decoder_tokens, real_tokens, wide

Generators = Sequence[np.random.Generator]

_EMBEDDINGS = ("text_embeds", "image_embeds")
_EMBEDDERS = ("get_text_features", "get_image_features")  # methods of models that hand these out
_FEW = 8  # up to this many classes or values, each gets its own probe


class PoolingError(ValueError):
    """A pooling that does not fit the model or cannot be done here; the message says which."""


class Fidelity(ABC):
    """Takes a model's output, the distance of two outputs, and probes of that distance."""

    @abstractmethod
    def output(self, model_output: Any, batch: Batch) -> Tensor:
        """The tensor to compare, ``[batch, ...]``, from the return value of ``model(**batch)``.

        Raises:
            ValueError: if the model returned something else.
        """

    def pooling_of(self, model_output: Any) -> Pooling | None:
        """How the return value of ``model(**batch)`` is pooled; None if it is not."""
        del model_output
        return None

    @abstractmethod
    def distance(self, dense: Tensor, other: Tensor, batch: Batch) -> Tensor:
        """Distance of ``other`` from ``dense`` per example, ``[batch]``; both come from
        :meth:`output`."""

    def softened(self, dense: Tensor, other: Tensor, batch: Batch, temperature: float) -> Tensor:
        """:meth:`distance` for training, ``[batch]``: between probabilities at a temperature, times its
        square, which keeps gradients at one scale (Hinton et al. 2015); without effect on outputs
        that are not logits."""
        del temperature
        return self.distance(dense, other, batch)

    @abstractmethod
    def probe(self, output: Tensor, batch: Batch, rngs: Generators) -> Tensor:
        """A random ``u`` of the shape of ``output`` with ``E[u u']`` the Hessian of the distance
        there.

        Args:
            output: the dense output, ``[batch, ...]``.
            batch: its batch.
            rngs: one generator per example; padding draws nothing, so that the draws of an example
                do not depend on the batch it is in.
        """

    def probes(self, output: Tensor, batch: Batch, rngs: Generators) -> list[Tensor]:
        """Several vectors ``u`` of the shape of ``output``, ``[batch, ...]``, whose ``sum u u'`` is
        the Hessian, on average or exactly.

        One probe is enough for a sum over many examples. For weights of single tokens several are
        needed: four random ones, half as long, or for a small output an exact factor.
        """
        return [self.probe(output, batch, rngs) / 2 for _ in range(4)]

    @abstractmethod
    def scorer(self) -> Scorer:
        """What takes the numbers per example that figures are computed from; it has seen none yet."""

    def loss(self, output: Tensor, batch: Batch) -> Tensor | None:
        """Task loss per example, ``[batch]``, if the batch has labels for this output; None
        otherwise."""
        del output, batch
        return None


class _Logits(Fidelity):
    """What comparisons of logits have in common."""

    def softened(self, dense: Tensor, other: Tensor, batch: Batch, temperature: float) -> Tensor:
        distance = self.distance(wide(dense) / temperature, wide(other) / temperature, batch)
        return temperature**2 * distance


@dataclass(frozen=True)
class ClassLogits(_Logits):
    """Classifiers, logits ``[batch, classes]``: KL divergence (nats) from the dense probabilities.

    The classes of models for multiple choice are the choices.
    """

    def output(self, model_output: Any, batch: Batch) -> Tensor:
        del batch
        return _field(model_output, "logits", 2, "[batch, classes]")

    def distance(self, dense: Tensor, other: Tensor, batch: Batch) -> Tensor:
        del batch
        return kl_divergence(dense, other)

    def probe(self, output: Tensor, batch: Batch, rngs: Generators) -> Tensor:
        del batch
        uniforms = np.array([rng.random() for rng in rngs])
        return softmax_probe(output, torch.as_tensor(uniforms))

    def probes(self, output: Tensor, batch: Batch, rngs: Generators) -> list[Tensor]:
        """For few classes one probe per class but the last: the columns of the Cholesky factor of
        ``diag(p) - p p'``, whose rank is one less."""
        classes = output.shape[-1]
        if classes > _FEW:
            return super().probes(output, batch, rngs)
        p = wide(output).softmax(dim=-1)
        tiny = torch.finfo(p.dtype).tiny
        left = p.flip(-1).cumsum(-1).flip(-1).clamp(min=tiny)  # of a class and those behind it
        share = (p / left).sqrt()
        found: list[Tensor] = []
        for y in range(classes - 1):
            probe, behind = torch.zeros_like(p), left[:, y + 1].sqrt()
            probe[:, y] = share[:, y] * behind
            probe[:, y + 1 :] = -p[:, y + 1 :] * (share[:, y] / behind)[:, None]
            found.append(probe)
        return found

    def loss(self, output: Tensor, batch: Batch) -> Tensor | None:
        """Cross entropy of the labels."""
        labels = class_numbers(batch, output.shape[:1], output.shape[1], output.device)
        if labels is None:
            return None
        return functional.cross_entropy(
            wide(output), labels, reduction="none", ignore_index=IGNORED
        )

    def scorer(self) -> Scorer:
        return ClassScorer()


@dataclass(frozen=True)
class LabelLogits(_Logits):
    """Multi-label classifiers, logits ``[batch, labels]``: the KL divergences (nats) from the dense
    probabilities of yes and no, summed over the labels."""

    def output(self, model_output: Any, batch: Batch) -> Tensor:
        del batch
        return _field(model_output, "logits", 2, "[batch, labels]")

    def distance(self, dense: Tensor, other: Tensor, batch: Batch) -> Tensor:
        del batch
        return kl_divergence(_as_classes(dense), _as_classes(other)).sum(dim=-1)

    def probe(self, output: Tensor, batch: Batch, rngs: Generators) -> Tensor:
        """``s sqrt(p (1 - p))`` with random signs ``s``: the Hessian is diagonal."""
        del batch
        return random_signs(output, rngs) * _spread(output)

    def probes(self, output: Tensor, batch: Batch, rngs: Generators) -> list[Tensor]:
        """For few labels one probe per label."""
        labels = output.shape[-1]
        if labels > _FEW:
            return super().probes(output, batch, rngs)
        spread = _spread(output)
        one = torch.eye(labels, dtype=spread.dtype, device=spread.device)
        return [one[label] * spread for label in range(labels)]

    def loss(self, output: Tensor, batch: Batch) -> Tensor | None:
        """Binary cross entropy, summed over the labels."""
        labels = yes_or_no(batch, output.shape, output.device)
        if labels is None:
            return None
        wanted = labels.to(wide(output))
        losses = functional.binary_cross_entropy_with_logits(wide(output), wanted, reduction="none")
        return losses.sum(dim=-1)

    def scorer(self) -> Scorer:
        return LabelScorer()


def _as_classes(logits: Tensor) -> Tensor:
    """Logits of yes or no, ``[...]``, as those of two classes, ``[..., 2]``."""
    return torch.stack([torch.zeros_like(logits), logits], dim=-1)


def _spread(logits: Tensor) -> Tensor:
    """The standard deviations of yes or no, ``[...]``."""
    p = wide(logits).sigmoid()
    return (p * (1 - p)).sqrt()


@dataclass(frozen=True)
class Regression(Fidelity):
    """Regression heads, ``[batch, values]``: half the squared difference, summed over the values."""

    def output(self, model_output: Any, batch: Batch) -> Tensor:
        del batch
        return _field(model_output, "logits", 2, "[batch, values]")

    def distance(self, dense: Tensor, other: Tensor, batch: Batch) -> Tensor:
        del batch
        return (wide(dense) - wide(other)).square().sum(dim=-1) / 2

    def probe(self, output: Tensor, batch: Batch, rngs: Generators) -> Tensor:
        del batch
        return random_signs(output, rngs)

    def probes(self, output: Tensor, batch: Batch, rngs: Generators) -> list[Tensor]:
        """For few values one probe per value."""
        values = output.shape[-1]
        if values > _FEW:
            return super().probes(output, batch, rngs)
        one = torch.eye(values, dtype=output.dtype, device=output.device)
        return [one[v].expand_as(output) for v in range(values)]

    def loss(self, output: Tensor, batch: Batch) -> Tensor | None:
        """Half the squared error."""
        labels = numbers(batch, output.shape, output.device)
        if labels is None:
            return None
        return (wide(output) - labels).square().sum(dim=-1) / 2

    def scorer(self) -> Scorer:
        return NumberScorer()


@dataclass(frozen=True)
class TokenLogits(_Logits):
    """Language models and token classifiers, logits ``[batch, tokens, vocabulary]``.

    In encoder-decoder models the tokens are the decoder's. The distance is the KL divergence (nats)
    from the dense probabilities, the mean over the example's real tokens, so that every example
    counts the same however long it is.

    Args:
        causal: whether position ``t`` predicts the token at ``t + 1`` (labels are shifted).
    """

    causal: bool

    def output(self, model_output: Any, batch: Batch) -> Tensor:
        logits = _field(model_output, "logits", 3, "[batch, tokens, vocabulary]")
        expected = decoder_tokens(batch).shape
        if logits.shape[:2] != expected:
            raise ValueError(
                f"the model returned logits of shape {list(logits.shape)} for inputs of shape "
                f"{list(expected)}; pass a `fidelity` that knows which outputs to compare."
            )
        return logits

    def distance(self, dense: Tensor, other: Tensor, batch: Batch) -> Tensor:
        real = decoder_tokens(batch).to(dense.device)
        kl = torch.where(real, kl_divergence(dense, other), 0)
        return kl.sum(dim=1) / real.sum(dim=1).clamp(min=1)

    def probe(self, output: Tensor, batch: Batch, rngs: Generators) -> Tensor:
        real = decoder_tokens(batch).cpu().numpy()
        uniforms = np.zeros(real.shape)
        for row, mask, rng in zip(uniforms, real, rngs, strict=True):
            row[mask] = rng.random(int(mask.sum()))
        tokens = real.sum(axis=1, keepdims=True).clip(min=1)
        weights = real / np.sqrt(tokens)  # squared: one over the tokens
        probe = softmax_probe(output, torch.as_tensor(uniforms))
        return probe * torch.as_tensor(weights).to(probe)[..., None]

    def loss(self, output: Tensor, batch: Batch) -> Tensor | None:
        """Cross entropy of the labels, as the mean over the example's labelled tokens."""
        labels = class_numbers(batch, output.shape[:2], output.shape[2], output.device)
        if labels is None:
            return None
        if self.causal:
            output, labels = output[:, :-1], labels[:, 1:]
        loss = functional.cross_entropy(
            wide(output).transpose(1, 2), labels, reduction="none", ignore_index=IGNORED
        )
        return loss.sum(dim=1) / (labels != IGNORED).sum(dim=1).clamp(min=1)

    def scorer(self) -> Scorer:
        return NextTokenScorer() if self.causal else TokenScorer()


@dataclass(frozen=True)
class FrameLogits(_Logits):
    """Classifiers of the frames of a recording, and its transcription by them (CTC), logits ``[batch, frames,
    classes]``: the mean over the frames of the KL divergence (nats) from the dense probabilities.

    All frames count: what is padded by a feature extractor is read as sound by the models.
    """

    def output(self, model_output: Any, batch: Batch) -> Tensor:
        del batch
        return _field(model_output, "logits", 3, "[batch, frames, classes]")

    def distance(self, dense: Tensor, other: Tensor, batch: Batch) -> Tensor:
        del batch
        return kl_divergence(dense, other).mean(dim=1)

    def probe(self, output: Tensor, batch: Batch, rngs: Generators) -> Tensor:
        del batch
        frames = output.shape[1]
        uniforms = torch.as_tensor(np.stack([rng.random(frames) for rng in rngs]))
        return softmax_probe(output, uniforms) / math.sqrt(frames)

    def scorer(self) -> Scorer:
        return FrameScorer()


@dataclass(frozen=True)
class PixelLogits(FrameLogits):
    """Semantic segmentation, logits ``[batch, classes, height, width]``: as :class:`FrameLogits`, over the
    places of the map; the output is ``[batch, places, classes]``."""

    def output(self, model_output: Any, batch: Batch) -> Tensor:
        del batch
        logits = _field(model_output, "logits", 4, "[batch, classes, height, width]")
        return logits.flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class SpanLogits(_Logits):
    """Extractive question answering: the sum of the KL divergences (nats) of the answer's start and
    end.

    The output is the logits over the tokens that the model reads, ``[batch, 2, tokens]``; at
    padding the smallest number.
    """

    def output(self, model_output: Any, batch: Batch) -> Tensor:
        ends = [
            wide(_field(model_output, f"{end}_logits", 2, "[batch, tokens]"))
            for end in ("start", "end")
        ]
        logits = torch.stack(ends, dim=1)
        real = decoder_tokens(batch).to(logits.device)
        if real.shape != logits[:, 0].shape:
            raise ValueError(
                f"the model returned logits of shape {list(ends[0].shape)} for inputs of shape "
                f"{list(real.shape)}; pass a `fidelity` that knows which outputs to compare."
            )
        return logits.masked_fill(~real[:, None], torch.finfo(logits.dtype).min)

    def distance(self, dense: Tensor, other: Tensor, batch: Batch) -> Tensor:
        del batch
        return kl_divergence(dense, other).sum(dim=1)

    def probe(self, output: Tensor, batch: Batch, rngs: Generators) -> Tensor:
        del batch
        return softmax_probe(output, torch.as_tensor(np.stack([rng.random(2) for rng in rngs])))

    def scorer(self) -> Scorer:
        return SpanScorer()


@dataclass(frozen=True)
class PooledEmbedding(Fidelity):
    """Models without a head: one minus the cosine of embeddings, ``[batch, width]``.

    An embedding is pooled from the last hidden states of real tokens (the decoder's in
    encoder-decoder models) or of all patches of an image. Models that return an embedding of the
    text, the image or both (CLIP) are compared by that, with the mean of the two distances for
    pairs.

    Args:
        pooling: how the hidden states become one vector.
    """

    pooling: Pooling = Pooling.MEAN

    def pooling_of(self, model_output: Any) -> Pooling | None:
        """How the return value of ``model(**batch)`` is pooled; None if it is an embedding
        already."""
        return None if _embeddings(model_output) else self.pooling

    def output(self, model_output: Any, batch: Batch) -> Tensor:
        given = _embeddings(model_output)
        if given:
            return self._pair(given)
        hidden = wide(_field(model_output, "last_hidden_state", 3, "[batch, tokens, width]"))
        real = decoder_tokens(batch).to(hidden.device)
        if real.shape != hidden.shape[:2]:
            real = real_tokens(batch).to(hidden.device)
        if (
            real.shape != hidden.shape[:2]
        ):  # images: patches stand where tokens do, all of them real
            real = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        return pooled(hidden, real, self.pooling)

    def _pair(self, embeddings: Sequence[Tensor]) -> Tensor:
        """Unit vectors side by side: the cosine of two such rows is the mean of the parts' cosines."""
        if len({len(e) for e in embeddings}) != 1:
            raise ValueError(
                f"the model embedded {' and '.join(str(len(e)) for e in embeddings)} examples of its "
                "inputs; give one image for every text."
            )
        device = embeddings[0].device
        return torch.cat(
            [functional.normalize(wide(e).to(device), dim=-1) for e in embeddings], dim=-1
        )

    def distance(self, dense: Tensor, other: Tensor, batch: Batch) -> Tensor:
        del batch
        return 1 - functional.cosine_similarity(dense, other, dim=-1)

    def probe(self, output: Tensor, batch: Batch, rngs: Generators) -> Tensor:
        """``(I - e e') s / |x|`` with random signs ``s`` and ``e = x / |x|``: the Hessian at ``x`` is
        ``(I - e e') / |x|^2``."""
        del batch
        length = output.square().sum(dim=-1, keepdim=True).sqrt()
        unit, signs = output / length, random_signs(output, rngs)
        return (signs - unit * (unit * signs).sum(dim=-1, keepdim=True)) / length

    def probes(self, output: Tensor, batch: Batch, rngs: Generators) -> list[Tensor]:
        """A single random one: the many directions of an embedding average already, and every further probe is a
        backward pass."""
        return [self.probe(output, batch, rngs)]

    def scorer(self) -> Scorer:
        return EmbeddingScorer()


def _embeddings(model_output: Any) -> list[Tensor]:
    """The embeddings that a model returns itself."""
    found = [getattr(model_output, name, None) for name in _EMBEDDINGS]
    return [e for e in found if isinstance(e, Tensor) and e.ndim == 2]


def fidelity_of(model: nn.Module, pooling: Pooling | None = None) -> Fidelity:
    """The fidelity that fits the model's head, judged by its class and configuration.

    Args:
        model: the model.
        pooling: of a model that embeds texts; None for what the files of sentence-transformers in the folder
            or the repository that it was loaded from state, or the mean over all tokens without
            such files.

    Raises:
        PoolingError: if ``pooling`` is given for a model that pools nothing, or the files name a pooling that
            cannot be done here.
        ValueError: if the head is not understood; pass a ``fidelity`` of your own then.
    """
    names = [cls.__name__ for cls in type(model).__mro__]
    config = getattr(model, "config", None)
    for ending, make in _HEADS:
        if any(name.endswith(ending) for name in names):
            _refuse_pooling(names[0], pooling)
            return make(config)
    if getattr(model, "base_model", None) is model:  # a transformers model without a head
        if any(hasattr(model, name) for name in _EMBEDDERS):
            _refuse_pooling(names[0], pooling)
            return PooledEmbedding()
        if pooling is not None:
            return PooledEmbedding(pooling)
        known = embedder_of(model)
        if known.problem:
            raise PoolingError(
                f"{known.problem}; give the `pooling` to judge embeddings by "
                f"({', '.join(each.value for each in Pooling)})."
            )
        return PooledEmbedding(known.pooling or Pooling.MEAN)
    raise ValueError(
        f"`model` is a {names[0]}, whose output no fidelity is known for; pass "
        "`fidelity=ClassLogits()`, `LabelLogits()`, `Regression()`, `TokenLogits(causal=...)`, "
        "`FrameLogits()`, `PixelLogits()`, `SpanLogits()`, `PooledEmbedding()` or your own `Fidelity`."
    )


def embeds_all_tokens(fidelity: Fidelity) -> bool:
    """Whether the output that is compared is an embedding to which all tokens of a text add."""
    return isinstance(fidelity, PooledEmbedding) and not fidelity.pooling.reads_one_token


def embedding_notes(model: nn.Module, fidelity: Fidelity | None) -> tuple[str, ...]:
    """Sentences on what the files beside a model that embeds state and is not done here."""
    if not isinstance(fidelity, PooledEmbedding):
        return ()
    known = embedder_of(model)
    if known.problem:
        return (f"{known.problem}; {fidelity.pooling.value} pooling was taken instead.",)
    if known.pooling in (None, fidelity.pooling):
        return known.notes
    stated, taken = in_words(known.pooling), in_words(fidelity.pooling)
    return (f"the model states {stated}, and its embeddings were judged by {taken}.", *known.notes)


def _refuse_pooling(name: str, pooling: Pooling | None) -> None:
    if pooling is not None:
        raise PoolingError(
            f"`pooling` is {pooling.value}, and `model` is a {name}, whose output is not pooled; leave it "
            "out."
        )


def _sequence_head(config: Any) -> Fidelity:
    kind = getattr(config, "problem_type", None)
    if kind == "multi_label_classification":
        return LabelLogits()
    if kind == "regression" or (kind is None and getattr(config, "num_labels", 2) == 1):
        return Regression()
    return _told_apart(config, ClassLogits())


def _causal(config: Any) -> Fidelity:
    del config
    return TokenLogits(causal=True)


def _tokens(config: Any) -> Fidelity:
    del config
    return TokenLogits(causal=False)


def _token_classes(config: Any) -> Fidelity:
    return _told_apart(config, TokenLogits(causal=False))


def _told_apart(config: Any, fidelity: Fidelity) -> Fidelity:
    if getattr(config, "num_labels", 2) == 1:
        raise ValueError(
            "`model` is a classifier of one class, whose probability is always 1, so that "
            "nothing can be measured on its output; pass a `fidelity` of your own, such as `Regression()`."
        )
    return fidelity


def _conditional(config: Any) -> Fidelity:
    # Encoder-decoder models predict the label at the same position; the others are language models
    # that see images or sound, and predict the next token.
    return TokenLogits(causal=not getattr(config, "is_encoder_decoder", False))


def _classes(config: Any) -> Fidelity:
    del config
    return ClassLogits()


def _frames(config: Any) -> Fidelity:
    return _told_apart(config, FrameLogits())


def _transcript(config: Any) -> Fidelity:
    del config
    return FrameLogits()


def _pixels(config: Any) -> Fidelity:
    return _told_apart(config, PixelLogits())


def _span(config: Any) -> Fidelity:
    del config
    return SpanLogits()


_HEADS: tuple[tuple[str, Callable[[Any], Fidelity]], ...] = (
    ("ForSequenceClassification", _sequence_head),
    ("ForNextSentencePrediction", _classes),
    ("ForMultipleChoice", _classes),
    ("ForQuestionAnswering", _span),
    ("ForImageClassification", _sequence_head),
    ("ForImageClassificationWithTeacher", _sequence_head),
    ("ForVideoClassification", _sequence_head),
    ("ForAudioClassification", _sequence_head),
    ("ForAudioFrameClassification", _frames),
    ("ForCTC", _transcript),
    ("ForSemanticSegmentation", _pixels),
    ("ForCausalLM", _causal),
    ("LMHeadModel", _causal),
    ("ForConditionalGeneration", _conditional),
    ("MTModel", _conditional),
    ("EncoderDecoderModel", _tokens),
    ("ForMaskedLM", _tokens),
    ("ForTokenClassification", _token_classes),
)


def kl_divergence(dense: Tensor, other: Tensor) -> Tensor:
    """``KL(softmax(dense) || softmax(other))`` in nats of logits ``[..., classes]``, ``[...]``."""
    dense, other = wide(dense).log_softmax(dim=-1), wide(other).log_softmax(dim=-1)
    p = dense.exp()
    return torch.where(p > 0, p * (dense - other), 0).sum(dim=-1)


def softmax_probe(logits: Tensor, uniforms: Tensor) -> Tensor:
    """``p - onehot(y)`` with ``y`` drawn from ``p = softmax(logits)`` by inverting its distribution.

    Args:
        logits: ``[..., classes]``.
        uniforms: one number in [0, 1) per distribution, ``[...]``.
    """
    p = wide(logits).softmax(dim=-1)
    cumulative = p.cumsum(dim=-1)
    thresholds = uniforms.to(p)[..., None] * cumulative[..., -1:]
    drawn = torch.searchsorted(cumulative, thresholds, right=True).clamp(max=p.shape[-1] - 1)
    return p - torch.zeros_like(p).scatter_(-1, drawn, 1.0)


def random_signs(output: Tensor, rngs: Generators) -> Tensor:
    """Independent signs of the shape of ``output``, ``[batch, ...]``, one generator per example."""
    signs = np.stack([2.0 * rng.integers(0, 2, size=tuple(output.shape[1:])) - 1 for rng in rngs])
    return torch.as_tensor(signs).to(output)


def _field(model_output: Any, name: str, ndim: int, shape: str) -> Tensor:
    # Models from outside of transformers return the tensor itself.
    value = model_output if isinstance(model_output, Tensor) else getattr(model_output, name, None)
    if not isinstance(value, Tensor) or value.ndim != ndim:
        found = list(value.shape) if isinstance(value, Tensor) else type(model_output).__name__
        raise ValueError(
            f"the model's output has no `{name}` of shape {shape}, got {found}; pass a `fidelity` that "
            "fits this model."
        )
    return value
