"""Replacing a folder: only what this library wrote goes, and all of it comes back after an interruption."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cahp_opt.files.belongings import LIST_FILE, Belongings, write_list
from cahp_opt.files.folders import whole_folder


def write(folder: Path, text: str, *more: str, overwrite: bool = True) -> None:
    with whole_folder(folder, overwrite=overwrite) as made:
        for name in ("cahp_selection.json", "config.json", "deep/tokenizer.json", *more):
            (made / name).parent.mkdir(exist_ok=True)
            (made / name).write_text(f"{text} {name}")


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != LIST_FILE
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "pruned", "one", "gone.json")
    return tmp_path / "pruned"


OURS = ("cahp_selection.json", "config.json", "deep/tokenizer.json")


def test_only_our_files_are_replaced(folder: Path) -> None:
    (folder / "README.md").write_text("# Mine")
    (folder / "deep" / "notes.txt").write_text("mine")
    (folder / "runs" / "empty").mkdir(parents=True)
    os.symlink("nowhere", folder / "link")
    there = Belongings.of(folder)
    assert there.recognised and set(there.ours) == {*OURS, "gone.json", LIST_FILE}
    assert set(there.foreign) == {"README.md", "deep/notes.txt", "runs/", "link"}
    inode = (folder / "README.md").stat().st_ino
    write(folder, "two")
    mine = {"README.md": "# Mine", "deep/notes.txt": "mine"}
    assert contents(folder) == {**mine, **{name: f"two {name}" for name in OURS}}
    assert (folder / "runs" / "empty").is_dir() and os.readlink(folder / "link") == "nowhere"
    assert (folder / "README.md").stat().st_ino == inode
    assert [path.name for path in folder.parent.iterdir()] == ["pruned"]
    assert set(Belongings.of(folder).foreign) == set(there.foreign)


def test_what_was_changed_or_has_our_name_is_set_aside(folder: Path) -> None:
    (folder / "config.json").write_text("changed")
    (folder / "stats.safetensors").write_text("mine")
    (folder / "stats.safetensors.kept").write_text("mine too")
    write(folder, "two", "stats.safetensors")
    assert contents(folder) == {
        **{name: f"two {name}" for name in (*OURS, "stats.safetensors")},
        "config.json.kept": "changed",
        "stats.safetensors.kept": "mine too",
        "stats.safetensors.kept1": "mine",
    }


def test_folders_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    home, model = tmp_path / "home", tmp_path / "model"
    for path, name in ((home, "thesis.tex"), (model, "config.json"), (model, "model.safetensors")):
        path.mkdir(exist_ok=True)
        (path / name).write_text("precious")
    before = contents(tmp_path)
    (tmp_path / "link").symlink_to(home)
    for path in (home, model, tmp_path / "link", tmp_path):
        with pytest.raises(FileExistsError, match="nothing in it is replaced"):
            write(path, "two")
        with pytest.raises(FileExistsError, match="not empty"):
            write(path, "two", overwrite=False)
    assert contents(home) | contents(model) == {k.split("/")[1]: v for k, v in before.items()}


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "cahp_weights.safetensors"]
)
def test_weights_of_somebody_else_are_refused(folder: Path, name: str) -> None:
    """They may be trained ones, and beside others neither could be loaded."""
    (folder / name).write_text("trained")
    with pytest.raises(FileExistsError, match=f"{name}.*move them away"):
        write(folder, "two")
    assert (folder / name).read_text() == "trained"
    assert contents(folder)["config.json"] == "one config.json"


def test_a_link_stays_one_and_leads_to_the_new_files(folder: Path) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    (folder / "mine").write_text("mine")
    write(link, "two")
    assert link.is_symlink() and contents(folder)["config.json"] == "two config.json"


@pytest.mark.parametrize("stop", range(1, 12))
def test_everything_comes_back_after_an_interruption(
    folder: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    for name in ("mine", "config.json"):
        (folder / name).write_text("mine")
    before, calls = contents(folder), 0
    rename: Callable[..., Any] = Path.rename

    def interrupted(self: Path, target: Any) -> Any:
        nonlocal calls
        calls += 1
        moved = rename(self, target) if stop % 2 else None
        if calls == (stop + 1) // 2:
            raise KeyboardInterrupt
        return moved if stop % 2 else rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(folder, "two")
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["pruned"]


@pytest.mark.parametrize("report", [True, False])
def test_folders_of_earlier_releases_have_no_list(folder: Path, report: bool) -> None:
    names, mine = [*OURS[:2], "gone.json"], ("notes.txt", "cahp_notes.md", "cahp_runs.json")
    (folder / LIST_FILE).unlink()
    for name in mine:
        (folder / name).write_text("mine")
    with pytest.raises(FileExistsError, match="nothing in it is replaced"):
        write(folder, "two")  # a selection alone may lie in the folder of an unpruned model
    (folder / "model.cahp.safetensors").write_text("one")
    names.append("model.cahp.safetensors")
    if report:
        files = {name: (folder / name).stat().st_size for name in names}
        record = {"kind": "cahp-report", "version": 1, "files": files}
        (folder / "report.json").write_text(json.dumps(record))
    write(folder, "two")
    found = contents(folder)
    assert found["config.json"] == "two config.json"
    assert all(found.get(name) == "mine" for name in mine)
    assert ("gone.json" in found) != report and "report.json" not in found
    assert "model.cahp.safetensors" not in found


def test_a_list_that_is_broken_tells_nothing(folder: Path) -> None:
    (folder / LIST_FILE).write_text("{}")
    assert not Belongings.of(folder).recognised
    write_list(folder)
    assert Belongings.of(folder).recognised and not Belongings.of(folder / "nowhere").ours
