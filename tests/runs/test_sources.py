"""Texts as people have them: every format gives the same examples, and names what it lacks."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cahp_opt.files import data_sets, text_lines
from cahp_opt.runs.columns import ColumnOptions
from cahp_opt.runs.sources import texts_in
from cahp_opt.runs.texts import Example, LineTexts, TextError, split

Row = Mapping[str, Any]

ROWS: list[Row] = [
    {"text": 'He said "hi", twice', "text_pair": "a;b|c", "label": "0"},
    {"text": "two\nlines and\ta tab", "text_pair": "naïve 模型", "label": "1"},
    {"text": '5" disk', "text_pair": '"', "label": "1"},
    {"text": "'single'", "text_pair": "", "label": "0"},
    {"text": "comma, semicolon; bar |", "text_pair": '""', "label": "good"},
]
EXAMPLES = [Example(row["text"], row["text_pair"], row["label"]) for row in ROWS]


def delimited(path: Path, rows: Sequence[Row], delimiter: str = "\t", **options: Any) -> None:
    with path.open("w", newline="", encoding=options.pop("encoding", "utf-8")) as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, **options)
        writer.writeheader()
        writer.writerows(rows)


def json_lines(path: Path, rows: Sequence[Row], encoding: str = "utf-8", end: str = "\n") -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)
    path.write_bytes(text.encode(encoding))


def parquet(path: Path, rows: Sequence[Row], group: int | None = 2) -> None:
    arrow: Any = pytest.importorskip("pyarrow", reason="the data extra")
    writer: Any = pytest.importorskip("pyarrow.parquet")
    writer.write_table(arrow.Table.from_pylist(list(rows)), path, row_group_size=group)


def plain(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(f"{row['text']}\n" for row in rows))


Write = Callable[[Path, Sequence[Row]], None]
FORMATS: Mapping[str, tuple[str, Write]] = {
    "tsv": ("a.tsv", delimited),
    "tsv, lines end in LF": ("a.tsv", lambda p, r: delimited(p, r, lineterminator="\n")),
    "tsv, all quoted": ("a.TSV", lambda p, r: delimited(p, r, quoting=csv.QUOTE_ALL)),
    "no suffix": ("a", delimited),
    "txt with a header": ("a.txt", delimited),
    "csv": ("a.csv", lambda p, r: delimited(p, r, ",")),
    "csv with semicolons": ("a.csv", lambda p, r: delimited(p, r, ";")),
    "csv with bars": ("a.csv", lambda p, r: delimited(p, r, "|")),
    "csv with tabs": ("a.csv", delimited),
    "csv, utf-8 with a mark": ("a.csv", lambda p, r: delimited(p, r, ",", encoding="utf-8-sig")),
    "csv, utf-16": ("a.csv", lambda p, r: delimited(p, r, ";", encoding="utf-16")),
    "tsv, utf-16": ("a.tsv", lambda p, r: delimited(p, r, encoding="utf-16")),
    "json lines": ("a.jsonl", json_lines),
    "json lines, CRLF": ("a.json", lambda p, r: json_lines(p, r, end="\r\n")),
    "json lines, utf-16": ("a.ndjson", lambda p, r: json_lines(p, r, "utf-16", "\r\n\r\n")),
    "parquet": ("a.parquet", parquet),
}


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_examples(form: str, tmp_path: Path) -> None:
    name, write = FORMATS[form]
    write(tmp_path / name, ROWS)
    found = texts_in(tmp_path / name)
    assert list(found) == list(found) == EXAMPLES
    assert found.notes == ()


@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
def test_pandas_writes_as_many_examples_as_rows(suffix: str, tmp_path: Path) -> None:
    pandas: Any = pytest.importorskip("pandas", reason="it writes the table")
    rows = [{"text": f'{i}\n"quoted", and\ta tab\r\n', "label": i % 2} for i in range(40)]
    rows += [{"text": f"{i}\r\nend", "label": None} for i in range(10)]
    separator = "\t" if suffix == ".tsv" else ","
    pandas.DataFrame(rows).to_csv(tmp_path / f"a{suffix}", sep=separator, index=False)
    found = list(texts_in(tmp_path / f"a{suffix}"))
    assert len(found) == len(rows)
    assert [e.text.split() for e in found] == [str(row["text"]).split() for row in rows]
    assert {e.label for e in found} == {"0.0", "1.0", ""}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["text", "labels"], ("text", None, "labels")),
        (["Label", "Text"], ("Text", None, "Label")),
        (["sentence", "label", "idx"], ("sentence", None, "label")),
        (["sentence1", "sentence2", "label"], ("sentence1", "sentence2", "label")),
        (["premise", "hypothesis", "label"], ("premise", "hypothesis", "label")),
        (["question", "sentence", "label"], ("question", "sentence", "label")),
        (["id", "question", "context"], ("question", "context", None)),
        (["text", "hypothesis"], ("text", "hypothesis", None)),
        (["text", "Text_Pair", "label"], ("text", "Text_Pair", "label")),
        (["sentence", "text", "Text"], ("text", None, None)),
        (["title", "content"], ("content", None, None)),
        (["messages", "prompt"], ("messages", None, None)),
        (["messages", "text"], ("text", None, None)),
    ],
)
def test_usual_names_of_columns(
    names: list[str], expected: tuple[str, str | None, str | None]
) -> None:
    found = ColumnOptions().of(names, "a")
    assert (found.text, found.pair, found.label) == expected
    assert found.chat == (found.text == "messages")
    (told,) = found.notes("a")
    assert all(repr(name) in told for name in names)


def test_columns_by_name() -> None:
    names = ["sentence", "a", "b", "grade", "label"]
    found = ColumnOptions("b", "a", "grade").of(names, "x")
    assert (found.text, found.pair, found.label) == ("b", "a", "grade")
    found = ColumnOptions(text_column="a").of(names, "x")
    assert (found.text, found.pair, found.label) == ("a", None, "label")
    found = ColumnOptions(pair_column="a").of(names, "x")
    assert (found.text, found.pair) == ("sentence", "a")
    found = ColumnOptions(messages_column="a").of(names, "x")
    assert (found.text, found.chat) == ("a", True)


@pytest.mark.parametrize(
    ("options", "names", "part"),
    [
        (ColumnOptions("body"), ["text"], r"no column 'body', which `text_column` names; .*'text'"),
        (ColumnOptions(label_column="y"), ["text", "x"], "`label_column` names; .*'text', 'x'"),
        (ColumnOptions(), ["a", "b"], r"'a', 'b', none of which .* by `text_column` .*header"),
        (ColumnOptions(), ["text", "text"], "distinct names"),
        (ColumnOptions("text", "text"), ["text"], "read once"),
        (ColumnOptions("text", messages_column="m"), ["text", "m"], "one or the other"),
    ],
)
def test_columns_that_are_not_there(options: ColumnOptions, names: list[str], part: str) -> None:
    with pytest.raises(TextError, match=part):
        options.of(names, "a.csv")


def one(path: Path, **row: Any) -> list[Example]:
    json_lines(path, [row])
    return list(texts_in(path))


@pytest.mark.parametrize(
    ("label", "read"),
    [("good", "good"), (1, "1"), (1.0, "1.0"), (True, "1"), (None, None), (" 2 ", "2")],
)
def test_labels_as_they_come(label: object, read: str | None, tmp_path: Path) -> None:
    assert one(tmp_path / "a.jsonl", text="w", label=label) == [Example("w", None, read)]


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"text": 12}, "line 1 of .*'text' holds 12, and texts were expected"),
        ({"text": ["a", "b"]}, r"'text' holds \['a', 'b'\].*`text_column`"),
        ({"text": "a", "label": [1]}, "'label' holds .* a label is a text or a number"),
        ({"text": None}, "has no text in its column 'text'"),
        ({"messages": "hello"}, "'messages' is text and not a list of messages"),
        ({"messages": [{"content": "hello"}]}, "a message without a role"),
        ({"messages": [{"role": "user", "content": 3}]}, "whose content is no text"),
        ({}, "no JSON object with a key"),
    ],
)
def test_cells_that_make_no_sense(row: dict[str, Any], part: str, tmp_path: Path) -> None:
    with pytest.raises(TextError, match=part):
        one(tmp_path / "a.jsonl", **row)


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.json", '[{"text": "a"}]', "holds one JSON list; JSON Lines"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "line 2 .* is not a JSON object"),
        ("a.jsonl", "", "holds no JSON object"),
        ("a.csv", "", "must start with a header"),
        ("a.csv", "text,label\na,1,2\n", "line 2 .* 3 comma-separated cells, and its header 2"),
        ("a.jsonl.gz", "x", "is compressed; unpack it"),
    ],
)
def test_files_that_are_no_such_table(name: str, content: str, part: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(TextError, match=part):
        list(texts_in(tmp_path / name))


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="the data extra")
    (tmp_path / "a.parquet").write_text("text\nwords\n")
    with pytest.raises(TextError, match="cannot be read as Parquet"):
        texts_in(tmp_path / "a.parquet")


def test_conversations_of_both_forms_are_the_same(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    shared = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    expected = [Example(json.dumps(messages), chat=True)]
    assert one(tmp_path / "a.jsonl", messages=messages) == expected
    assert one(tmp_path / "a.jsonl", conversations=shared) == expected
    assert one(tmp_path / "a.jsonl", messages=json.dumps(messages)) == expected
    padded = [{**message, "name": None} for message in messages]  # as Parquet has them
    assert one(tmp_path / "a.jsonl", messages=padded) == expected


def test_plain_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("one, two\r\nthree\tfour\r\n".encode("utf-16"))
    found = texts_in(tmp_path / "a.txt")
    assert isinstance(found, LineTexts)
    assert [e.text for e in found] == ["one, two", "three\tfour"]
    with pytest.raises(TextError, match="no column 'b', which `text_column`"):
        texts_in(tmp_path / "a.txt", ColumnOptions("b"))


def test_a_line_that_does_not_fit_into_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_lines, "_LONGEST_LINE", 100)
    (tmp_path / "a.txt").write_text("one\n" + "x" * 99 + "\n" + "x" * 200 + "\n")
    with pytest.raises(TextError, match="line 3 of .* has 100 characters or more; break it"):
        list(texts_in(tmp_path / "a.txt"))


class FakeSet:
    """A streamed data set."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.column_names = list(rows[0])

    def select_columns(self, names: list[str]) -> list[Row]:
        return [{name: row[name] for name in names} for row in self.rows]


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    class DatasetNotFoundError(FileNotFoundError):
        """As `datasets` has it."""

    errors = {
        "other": ValueError("BuilderConfig 'other' not found. Available: ['x']\nmore"),
        "which": ValueError("Config name is missing.\nPlease pick one among: ['x', 'y']\nUsage"),
        "bad": ValueError("Bad split: bad. Available splits: ['train']"),
        "gated": DatasetNotFoundError("Dataset 'owner/name' is a gated dataset on the Hub."),
        "gone": DatasetNotFoundError("Dataset 'owner/name' doesn't exist or cannot be accessed."),
        "offline": ConnectionError("Couldn't reach 'owner/name' on the Hub (Offline)"),
    }

    def load_dataset(name: str, subset: str | None, *, split: str, streaming: bool) -> FakeSet:
        asked.append((name, subset, split, streaming))
        if subset in errors:
            raise errors[subset]
        return FakeSet([{**row, "idx": i} for i, row in enumerate(ROWS)])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    found = texts_in("owner/name")
    assert list(found) == EXAMPLES and "not read: 'idx'" in found.notes[0]
    assert list(texts_in("owner/name", subset="x", split="test")) == EXAMPLES
    assert asked == [("owner/name", None, "train", True), ("owner/name", "x", "test", True)]
    for subset, part in {
        "other": r"no file owner/name, and .*Available: \['x'\]; name one by `subset`",
        "which": r"is missing\. Please pick one among: \['x', 'y'\]; name one by `subset`",
        "bad": r"Available splits: \['train'\]; name one by `split`",
        "gated": "it is gated on the hub; ask for access",
        "gone": "doesn't exist .*; check the name, and for a private one log in",
        "offline": "Couldn't reach .* check its name and the connection, or unset",
    }.items():
        with pytest.raises(TextError, match=part):
            texts_in("owner/name", subset=subset)
    monkeypatch.setattr(data_sets, "_MOST", 3)
    assert list(found) == EXAMPLES[:3] and "only the first 3 rows" in found.notes[-1]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TextError, match=r"'datasets'; install .*cahp-opt\[data\]"):
        texts_in("owner/name")


@pytest.mark.slow
def test_a_folder_of_a_data_set(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the data extra")
    for part in range(2):
        json_lines(tmp_path / f"part-{part}.jsonl", ROWS[part::2])
    found = texts_in(tmp_path)
    assert sorted(e.text for e in found) == sorted(e.text for e in EXAMPLES)
    with pytest.raises(TextError, match="split"):
        list(texts_in(tmp_path, split="nowhere"))


def test_what_is_no_file_and_no_data_set(tmp_path: Path) -> None:
    for name in ("texts", "owner/name.csv", str(tmp_path / "no.txt")):
        with pytest.raises(FileNotFoundError):
            texts_in(name)
    (tmp_path / "a.csv").write_text("text\na\n")
    with pytest.raises(TextError, match="is a file, and `subset` and `split`"):
        texts_in(tmp_path / "a.csv", split="train")


@pytest.mark.parametrize("form", ["csv", "json lines"])
def test_memory_is_bounded_by_what_is_kept(form: str, tmp_path: Path) -> None:
    name, write = FORMATS[form]
    rows = [{"text": f"{i}\n{'word ' * 200}", "label": "0"} for i in range(1_000)]
    write(tmp_path / name, rows)
    size = sum(len(row["text"]) for row in rows)
    tracemalloc.start()
    found = split(texts_in(tmp_path / name), most=50, held_out=10, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.calibration) == 50
    assert peak < size / 3, f"{peak:,} of {size:,} bytes"


_SAMPLE = """
import re, sys
from cahp_opt.runs.sources import texts_in
from cahp_opt.runs.texts import split
found = split(texts_in(sys.argv[1]), most=2000, held_out=256, seed=0)
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]
print(len(found.calibration), peak)
"""
"""The peak of this process alone: ``ru_maxrss`` begins with that of the process that started it."""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["lines", "csv", "json lines", "parquet"])
def test_a_large_file_is_sampled_in_bounded_memory(form: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.txt" if form == "lines" else FORMATS[form][0])
    rows = [{"text": f"{i} {'some words ' * 45}"} for i in range(20_000)]
    if form == "parquet":
        many = ({"text": f"{part} {row['text']}"} for part in range(12) for row in rows)
        parquet(path, list(many), group=None)
    else:
        write = plain if form == "lines" else FORMATS[form][1]
        write(path, rows)
        body = path.read_bytes()
        if form == "csv":
            body = body.partition(b"\n")[2]
        with path.open("ab") as file:
            for part in range(12):
                file.write(body.replace(b" some", b" %d some" % part))
    done = subprocess.run(
        [sys.executable, "-c", _SAMPLE, str(path)], capture_output=True, text=True, check=True
    )
    number, kilobytes = map(int, done.stdout.split())
    assert number == 2000 and kilobytes < 300_000, f"{kilobytes} kB"


def test_choices_stand_in_columns_of_their_own_or_in_lists(tmp_path: Path) -> None:
    found = Example("w1", "w2", "1", choices=("a", "b", "c"))
    rows = [{"text": "w1", "text_pair": "w2", "choice10": "c", "choice1": "b", "choice0": "a"}]
    delimited(tmp_path / "a.tsv", [{**row, "label": "1"} for row in rows])
    assert list(texts_in(tmp_path / "a.tsv")) == [found]
    listed = {"text": "w1", "text_pair": "w2", "endings": ["a", "b", "c", "", None], "label": 1}
    json_lines(tmp_path / "a.jsonl", [listed])
    texts = texts_in(tmp_path / "a.jsonl")
    assert list(texts) == [found]
    assert "'endings' the choices" in texts.notes[0]
    one = {"text": "w1", "choice": "a", "option2": "b"}  # a single one of its kind is no choice
    delimited(tmp_path / "b.tsv", [one])
    assert list(texts_in(tmp_path / "b.tsv")) == [Example("w1")]


def test_an_empty_choice_moves_no_others(tmp_path: Path) -> None:
    """The label would be the number of another one."""
    row = {"text": "w1", "choice0": "", "choice1": "a", "choice2": "b", "label": "1"}
    delimited(tmp_path / "a.tsv", [row])
    with pytest.raises(TextError, match="choice 0 is empty and a later one is not"):
        list(texts_in(tmp_path / "a.tsv"))


def test_keys_that_come_late_are_told(tmp_path: Path) -> None:
    json_lines(tmp_path / "a.jsonl", [{"text": "w1"}, {"text": "w2"}, {"text": "w3", "label": 1}])
    texts = texts_in(tmp_path / "a.jsonl")
    assert [example.label for example in texts] == [None] * 3
    (note,) = [note for note in texts.notes if "'label'" in note]
    assert "is not read" in note and "line 3" in note


def test_other_choices_are_another_example(tmp_path: Path) -> None:
    rows = [{"text": "w1", "choice0": str(i), "choice1": "b"} for i in range(5)]
    delimited(tmp_path / "a.tsv", rows)
    found = split(texts_in(tmp_path / "a.tsv"), most=9, held_out=1, seed=0)
    assert len(found.calibration) == 4 and len(found.held_out) == 1
