"""Labels of a table as a model counts them: names, numbers, and what is neither."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
from command_line import make_tokenizer

from cahp_opt.runs.texts import Example, TextError
from cahp_opt.torch.texts.encoding import encode


def labels(given: list[str], **config: Any) -> list[Any]:
    model: Any = tiny_models.BERT.build(num_labels=config.pop("num_labels", 3))
    for name, value in config.items():
        setattr(model.config, name, value)
    examples = [Example(f"w{i}", None, label) for i, label in enumerate(given)]
    batches = encode(examples, make_tokenizer(), model, batch_size=len(given), max_length=9)
    found: list[Any] = batches[0]["labels"].tolist()
    return found


NAMES = {"bad": 0, "fair": 1, "good": 2}
STARS = {"1": 0, "2": 1, "3": 2}


@pytest.mark.parametrize(
    ("given", "names", "expected"),
    [
        (["0", "2", "1"], NAMES, [0, 2, 1]),
        (["good", "bad"], NAMES, [2, 0]),
        (["0.0", "2.0", "1"], NAMES, [0, 2, 1]),  # pandas, where a label is missing elsewhere
        (["good", "1", "0.0"], NAMES, [2, 1, 0]),
        (["1", "3"], STARS, [0, 2]),
        (["1.0", "3.0"], STARS, [0, 2]),
        (["nan", "inf"], {"nan": 1, "inf": 0, "eng": 2}, [1, 0]),  # codes of languages
    ],
)
def test_classes(given: list[str], names: dict[str, int], expected: list[int]) -> None:
    assert labels(given, label2id=names) == expected


@pytest.mark.parametrize(
    ("given", "names", "odd"),
    [
        (["1", "3", "0"], STARS, "'0' is not one of the model's: 1, 2, 3"),
        (["0", "1.5"], NAMES, "'1.5' is not one of the model's: 0 to 2, or bad, fair, good"),
        (["0", "nan"], NAMES, "'nan' is not one of"),
        (["0", "inf"], NAMES, "'inf' is not one of"),
        (["0", "3"], NAMES, "'3' is not one of"),
        (["good", "Bad"], NAMES, "'Bad' is not one of"),
        (["0", ""], NAMES, "'' is not one of"),
    ],
)
def test_what_is_no_class(given: list[str], names: dict[str, int], odd: str) -> None:
    with pytest.raises(TextError, match=odd):
        labels(given, label2id=names)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("bad, good", [1, 0, 1]), ("fair", [0, 1, 0]), ("", [0, 0, 0]), ("2,0", [1, 0, 1])],
)
def test_several_labels_in_one_cell(given: str, expected: list[float]) -> None:
    several = {"label2id": NAMES, "problem_type": "multi_label_classification"}
    assert labels([given], **several) == [expected]
    with pytest.raises(TextError, match="'awful' is not one of"):
        labels(["bad, awful"], **several)


def test_numbers() -> None:
    assert labels(["1", "2.5", "-3e0"], num_labels=1) == [1.0, 2.5, -3.0]


@pytest.mark.parametrize("odd", ["nan", "NaN", "inf", "-Infinity", "high", ""])
def test_what_is_no_number(odd: str) -> None:
    with pytest.raises(
        TextError, match=f"a finite number for this regression model, got \\['{odd}'"
    ):
        labels(["1", odd, "2.5"], num_labels=1)
