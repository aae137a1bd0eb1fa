"""Requests to end: they clear up, they keep what was timed, and they change nothing that is not theirs."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cahp_opt.cli import running
from cahp_opt.cli.outputs import kept_runs
from cahp_opt.cli.stopping import stopping_in_order
from cahp_opt.costs.workloads import Workload
from cahp_opt.files.belongings import LIST_FILE
from cahp_opt.files.folders import whole_folder
from cahp_opt.files.records import whole_file

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.fixture(autouse=True)
def default_handlers() -> Iterator[None]:
    """As in a process of its own, also where ``nohup`` has the tests ignore SIGHUP."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


NAMES = pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])


@NAMES
def test_half_written_folders_and_files_go_and_timed_runs_stay(
    name: str,
    code: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    number = getattr(signal, name)
    old = tmp_path / "pruned"
    with whole_folder(old) as written:
        (written / "old.txt").write_text("old")
    runs = tmp_path / "pruned.prefill.jsonl"

    def work(**options: Any) -> None:
        with (
            kept_runs(old, [Workload(2, 8)]),
            whole_folder(old, overwrite=True) as folder,
            whole_file(tmp_path / "stats") as file,
        ):
            for path in (folder / "weights", file, runs):
                path.write_text("half")
            os.kill(os.getpid(), number)

    monkeypatch.setattr(running, "app", work)
    assert running.main([]) == code
    assert {p.name for p in tmp_path.iterdir()} == {"pruned", runs.name}
    assert {p.name for p in old.iterdir()} == {"old.txt", LIST_FILE}
    told = capsys.readouterr().err
    assert told.startswith("cahp: interrupted; the runs so far are in") and "resumes" in told
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_second_request_does_not_disturb_the_clearing_up() -> None:
    cleared = False
    with pytest.raises(KeyboardInterrupt), stopping_in_order() as stop:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)
            cleared = True
    assert cleared and stop.code == 143


def test_ignored_and_foreign_handlers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def foreign(*args: object) -> None: ...

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGTERM, foreign)
    try:
        with stopping_in_order() as stop:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is foreign
        assert signal.getsignal(signal.SIGTERM) is foreign and stop.code is None
    finally:
        signal.signal(signal.SIGHUP, before[0])
        signal.signal(signal.SIGTERM, before[1])


def test_other_threads_take_no_signals() -> None:
    found = list[int | None]()

    def work() -> None:
        with stopping_in_order() as stop:
            found.append(stop.code)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]


@pytest.mark.parametrize("step", [1, 2])
def test_a_folder_that_is_replaced_is_never_away(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes right after the first or the second of the two renames."""
    target = tmp_path / "pruned"
    with whole_folder(target) as written:
        (written / "old.txt").write_text("old")
    rename, calls = Path.rename, list[Path]()

    def interrupted(self: Path, other: Path) -> Path:
        done = rename(self, other)
        calls.append(self)
        if len(calls) == step:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), whole_folder(target, overwrite=True) as folder:
        (folder / "new.txt").write_text("new")
    assert list(tmp_path.iterdir()) == [target]
    assert {p.name for p in target.iterdir()} == {"old.txt" if step == 1 else "new.txt", LIST_FILE}
