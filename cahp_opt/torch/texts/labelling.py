"""Labels of a table, or of folders, as a model counts them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from cahp_opt.runs.texts import Example, TextError
from cahp_opt.torch.running.unfit_inputs import chooses

Label = int | float | list[float]
"""The number of a class, a number, or 1 or 0 for every class of a multi-label classifier."""

_CLASSIFIERS = (
    "ForSequenceClassification",
    "ForImageClassification",
    "ForImageClassificationWithTeacher",
    "ForAudioClassification",
)


def counted_labels(examples: Sequence[Example], model: nn.Module) -> Sequence[Label] | None:
    """Labels as the model counts them; None without labels, or if the model is not a classifier.

    Several labels of a multi-label classifier stand in one cell, with commas between them. The label of an
    example with choices is the number of the right one, from 0, or the choice itself.

    Raises:
        TextError: for a label that is not one of the model's.
    """
    if not (type(model).__name__.endswith(_CLASSIFIERS) or chooses(model)):
        return None
    texts = [e.label for e in examples if e.label is not None]
    if not texts:
        return None
    if len(texts) < len(examples):
        raise TextError(
            f"{len(examples) - len(texts)} of {len(examples)} texts have no label; give all of them labels, or "
            "none."
        )
    if chooses(model):
        return _right(examples)
    config: Any = getattr(model, "config", None)
    count = int(config.num_labels)
    if count == 1 or config.problem_type == "regression":
        numbers = [_number(text) for text in texts]
        odd = sorted({t for t, x in zip(texts, numbers, strict=True) if not math.isfinite(x)})
        if odd:
            raise TextError(
                f"`label` must be a finite number for this regression model, got {odd[:5]}."
            )
        return numbers
    by_name: Mapping[str, int] = config.label2id or {}
    names = {str(name): int(i) for name, i in by_name.items()}
    # If names are numbers themselves, a number is a name and not a position.
    numbered = any(math.isfinite(_number(name)) for name in names)
    known = names if numbered else {str(i): i for i in range(count)} | names
    several = config.problem_type == "multi_label_classification"
    parts = [_parts(text, known) if several else [text] for text in texts]
    unknown = sorted({part for own in parts for part in own if _plain(part, known) not in known})
    if unknown:
        raise TextError(
            f"`label` {unknown[0]!r} is not one of the model's: "
            f"{'' if numbered else f'0 to {count - 1}, or '}{', '.join(names) or 'no names'}; correct it, or name "
            "another column by `label_column`."
        )
    found = [[known[_plain(part, known)] for part in own] for own in parts]
    if several:
        return [[float(i in own) for i in range(count)] for own in found]
    return [own[0] for own in found]


def _parts(text: str, known: Mapping[str, int]) -> list[str]:
    """The labels in a cell; none in an empty one."""
    if not text or _plain(text, known) in known:  # a name may hold a comma
        return [text] if text else []
    return [part.strip() for part in text.split(",")]


def _right(examples: Sequence[Example]) -> list[int]:
    """The numbers of the choices that the labels name: by their places if all labels can be places, because
    choices may be numbers too, and otherwise by their texts."""
    numbers = [_number(example.label or "") for example in examples]
    pairs = list(zip(numbers, examples, strict=True))
    if all(number.is_integer() and 0 <= number < len(e.choices) for number, e in pairs):
        return [int(number) for number in numbers]
    for example in examples:
        if example.label not in example.choices:
            raise TextError(
                f"`label` {example.label!r} is not one of the choices: give the numbers of all, from 0 to "
                f"{len(example.choices) - 1}, or the choices themselves."
            )
    return [example.choices.index(example.label or "") for example in examples]


def _plain(label: str, known: Mapping[str, int]) -> str:
    """A label without the ``.0`` that a table of numbers may have put behind it."""
    number = _number(label)
    return str(int(number)) if label not in known and number.is_integer() else label


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
