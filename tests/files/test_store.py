"""Results on disk: made once, whole or not at all, by one process at a time."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from cahp_opt.files.records import RecordError
from cahp_opt.files.store import Busy, Store


def test_nobody_waits_for_what_another_process_makes(tmp_path: Path) -> None:
    mine, other = Store(tmp_path, "mine"), Store(tmp_path, "other")

    def make() -> dict[str, Any]:
        with pytest.raises(Busy):
            mine.row("kind", "key", dict, wait=False)
        return {"value": 1}

    assert other.row("kind", "key", make)["device"] == "other"
    assert mine.row("kind", "key", dict, wait=False)["value"] == 1
    assert [path.name for path in (tmp_path / "kind").iterdir()] == [mine.path("kind", "key").name]


def test_what_fails_leaves_nothing_and_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fails() -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.row("kind", "key", fails)
    assert store.peek("kind", "key") is None
    assert store.row("kind", "key", lambda: {"value": 2}, wait=False)["value"] == 2
    assert store.row("kind", "key", fails)["value"] == 2
    assert store.row("kind", "another key", lambda: {"value": 3})["value"] == 3


def append(folder: Path) -> None:
    """Make a result, and leave a mark for having made it."""

    def make() -> dict[str, Any]:
        with (folder / "log").open("a") as log:
            log.write("made\n")
        return {}

    Store(folder).row("kind", "key", make)


def test_one_of_several_processes_makes_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=append, args=(tmp_path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 3
    assert (tmp_path / "log").read_text() == "made\n"


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_damaged_result_is_named(tmp_path: Path, content: str) -> None:
    store = Store(tmp_path)
    store.row("kind", "key", dict)
    path = store.path("kind", "key")
    path.write_text(content)
    with pytest.raises(RecordError, match=f"{path.name}.* remove it"):
        store.peek("kind", "key")
