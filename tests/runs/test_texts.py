"""Files of texts: what is read, what is refused, what a draw keeps, and how much memory that takes."""

from __future__ import annotations

import csv
import os
import random
import re
import threading
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest

from cahp_opt.files.formats import rows_of
from cahp_opt.runs import texts as module
from cahp_opt.runs.texts import (
    Example,
    LineTexts,
    TableTexts,
    TextError,
    TextSplit,
    read_table,
    split,
)


def lines(path: Path, content: bytes) -> LineTexts:
    path.write_bytes(content)
    return LineTexts(path)


def table_texts(path: Path) -> TableTexts:
    return TableTexts(rows_of(path))


def table(path: Path, content: str) -> list[Example]:
    path.write_text(content, encoding="utf-8")
    return read_table(path)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"]
)
def test_encodings_that_tell_what_they_are(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding.endswith("e") else ""
    found = lines(tmp_path / "a", f"{mark}naïve\r\n\r\n模型 two\n".encode(encoding))
    assert [e.text for e in found] == ["naïve", "模型 two"]
    assert found.notes == ()


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_wide_characters_without_a_mark_are_refused(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(TextError, match=r"line 1 of .* NUL.*byte-order mark.*convert it to UTF-8"):
        list(lines(tmp_path / "a", "one\ntwo\n".encode(encoding)))
    (tmp_path / "b").write_bytes("text\tlabel\none\t1\n".encode(encoding))
    with pytest.raises(TextError, match="convert it to UTF-8"):
        table_texts(tmp_path / "b")


def test_bytes_that_are_no_text_are_refused_with_their_line(tmp_path: Path) -> None:
    many = "some words\n" * 3000  # behind the first block that is decoded at once
    with pytest.raises(TextError, match=r"line 3002 of .*a is not UTF-8 text \(byte 0xe9\)"):
        list(lines(tmp_path / "a", (many + "two\ncafé\n").encode("latin-1")))
    with pytest.raises(TextError, match=r"mark of UTF-16 and is not such text"):
        list(lines(tmp_path / "a", b"\xff\xfe\n"))


def test_lines_that_show_nothing_are_left_out_and_counted(tmp_path: Path) -> None:
    content = "one\n\n  \t\n\u200b\n\ufeff\n\u2028\u00a0\ntwo\u200b\n\U000e0001\n🙂\n\ue000\n"
    found = lines(tmp_path / "a", content.encode())
    assert [e.text for e in found] == ["one", "two\u200b", "🙂", "\ue000"]
    assert "left out: 5" in found.notes[0]
    assert split(found, most=9, held_out=0, seed=0).notes == found.notes
    with pytest.raises(TextError, match="holds no text"):
        list(lines(tmp_path / "a", "\ufeff\u200b\n\u2060\n \n".encode()))
    (tmp_path / "b").write_text("text\tlabel\none\t1\n\u200b\t1\n\t0\ntwo\t0\n", encoding="utf-8")
    rows = table_texts(tmp_path / "b")
    assert [e.text for e in rows] == ["one", "two"]
    assert "left out: 2 (the first in line 3)" in rows.notes[-1]
    with pytest.raises(TextError, match="has no text in its column 'text'"):
        table(tmp_path / "b", "text\tlabel\n\t1\n\t0\n")


def test_a_pipe_is_read_once_and_gone_through_twice(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text('text\n"a\nb"\nc\n'))
    writer.start()
    assert [e.text for e in read_table(pipe)] == ["a\nb", "c"]
    writer.join()


def test_tables_as_csv_writes_them(tmp_path: Path) -> None:
    rows = [
        ["text", "text_pair", "label"],
        ['He said "hi" twice', "plain", "0"],
        ["a tab\there", 'ends with "quotes"', "1"],
        ["two\nlines", '"', "1"],
        ['5" disk', "", "0"],
    ]
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        with (tmp_path / "a").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="\t", quoting=quoting).writerows(rows)
        found = table_texts(tmp_path / "a")
        assert list(found) == [Example(a, b, label) for a, b, label in rows[1:]]
        assert found.notes == ()


def test_a_quote_inside_of_a_cell_is_a_character(tmp_path: Path) -> None:
    found = table(tmp_path / "a", 'text\tlabel\n5" disk\t0\nsay "yes" now\t1\n')
    assert [e.text for e in found] == ['5" disk', 'say "yes" now']


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('"Hello," she said', "line 3 of .* ends inside of it"),
        ('"tis the season', "line 3 of .* is never closed"),
    ],
)
def test_a_table_written_without_quoting_is_read_as_it_is(
    tmp_path: Path, text: str, reason: str
) -> None:
    (tmp_path / "a").write_text(f'text\tlabel\n"all of it"\t1\n{text}\t0\nlast\t1\n')
    found = table_texts(tmp_path / "a")
    assert [e.text for e in found] == ['"all of it"', text, "last"]
    (note,) = found.notes
    assert "quotes" in note and "read as characters" in note
    assert re.search(reason, note)


def test_a_quote_that_is_never_closed_is_not_sought_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cahp_opt.files.delimited._LONGEST_CELL", 100)
    (tmp_path / "a").write_text('text\n"open\n' + "words\n" * 50 + 'closed"\n')
    assert len(list(table_texts(tmp_path / "a"))) == 52


def test_rows_of_another_width_are_refused_in_either_reading(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="line 3 of .* 3 tab-separated cells, and its header 2"):
        table(tmp_path / "a", 'text\tlabel\n"a"\t1\nb\t1\t2\n')
    with pytest.raises(TextError, match="line 3 of .* never closed"):
        table(tmp_path / "a", 'text\tlabel\n"a\tb"\t1\n"b\nc\t2\n')


def test_columns_that_are_not_read_are_noted(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("id\ttext\tlabel\tsentence\n1\tone\t0\tx\n")
    found = table_texts(tmp_path / "a")
    assert list(found) == [Example("one", None, "0")]
    assert "not read: 'id', 'sentence'" in found.notes[0]


def sides(found: TextSplit) -> tuple[set[str], set[str]]:
    return tuple(  # type: ignore[return-value]
        {" ".join(e.text.split()) + "|" + " ".join((e.pair or "").split()) for e in side}
        for side in (found.calibration, found.held_out)
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_text_is_on_one_side_whatever_its_labels(seed: int) -> None:
    examples = [Example(f"text {i}", None, str(label)) for i in range(30) for label in (0, 1)]
    examples += [Example(f" text   {i}", None, "0") for i in range(30)]
    found = split(examples, most=99, held_out=10, seed=seed)
    calibration, held_out = sides(found)
    assert not calibration & held_out
    assert len(found.calibration) == 2 * 24 and len(found.held_out) == 6


def test_pairs_are_the_same_if_both_texts_are(tmp_path: Path) -> None:
    examples = [Example("a", f"b {i // 2}", str(i)) for i in range(40)]
    examples += [Example("a b", str(i // 2), str(i)) for i in range(40)]
    calibration, held_out = sides(split(examples, most=99, held_out=8, seed=1))
    assert not calibration & held_out and len(calibration | held_out) >= 36


def today(examples: Sequence[Example], most: int, held_out: int, seed: int) -> TextSplit:
    """The draw of distinct texts as it was when all texts were held in memory."""
    found = list(dict.fromkeys(examples))
    random.Random(seed).shuffle(found)
    back = min(held_out, max(len(found) // 5, 1))
    return TextSplit(tuple(found[back : back + most]), tuple(found[:back]))


def test_the_same_texts_are_drawn_as_ever(tmp_path: Path) -> None:
    content = [f"text {i % 700}" for i in range(2000)]
    (tmp_path / "a").write_text("\n".join(content))
    expected = today([Example(text) for text in content], 300, 50, 7)
    assert split(LineTexts(tmp_path / "a"), most=300, held_out=50, seed=7) == expected
    assert split(map(Example, content), most=300, held_out=50, seed=7) == expected


def test_of_very_many_texts_a_part_is_drawn_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POOL", 100)
    monkeypatch.setattr(module, "_CHUNK", 64)
    examples = [Example(f"text {i % 900}") for i in range(2000)]
    found = split(examples, most=50, held_out=10, seed=3)
    again = split(list(reversed(examples)), most=50, held_out=10, seed=3)
    assert len(set(found.calibration) | set(found.held_out)) == 60
    assert found != again, "the order still counts"
    pool = {e for s in range(60) for e in split(examples, most=50, held_out=10, seed=s).calibration}
    assert len(pool) == 100 and set(again.calibration) <= pool
    most = split(examples, most=600, held_out=60, seed=3)
    assert len(most.calibration) == 600 and len(most.held_out) == 60


@pytest.mark.parametrize("kind", ["lines", "table", "quoted table"])
def test_memory_is_bounded_by_what_is_kept(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    quote = '"' if kind.startswith("quoted") else ""
    with path.open("w") as file:
        if kind != "lines":
            file.write("text\tlabel\n")
        for i in range(2_000):
            text = f"{quote}text {i} {'word ' * 200}{quote}"
            file.write(text + ("\n" if kind == "lines" else "\t0\n"))
    size = path.stat().st_size
    tracemalloc.start()
    split(LineTexts(path) if kind == "lines" else table_texts(path), most=50, held_out=10, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 8, f"{peak:,} of {size:,} bytes"
