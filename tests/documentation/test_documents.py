"""Every command in the documents is run as it stands there, or named with the reason why not."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import typer
from documents import (
    DOCUMENTS,
    EXCUSED,
    INSTEAD,
    LESS,
    ROOT,
    SLOW,
    WORDS,
    as_run,
    commands,
    example,
    fences,
    files,
    in_document,
    is_name,
    own_method,
    own_objective,
)
from stand_ins import save

from cahp_opt.cli import app
from cahp_opt.demo import demo_texts

MINE = '''
from dataclasses import dataclass

import numpy as np

from cahp_opt import Proposal, Solver


@dataclass(frozen=True)
class MySolver(Solver):
    """The first units of every block, as few as may be."""

    def solve(self, problem, *, deadline, rng):
        space, few = problem.space, problem.budget.cheapest
        kept = [np.arange(units) < count for units, count in zip(space.units, few, strict=True)]
        return Proposal(np.concatenate(kept))

'''
LONG = ("benchmarks/README.md", "benchmarks/gpu/README.md")
RUN = [
    # The scripts of the benchmarks take minutes even on little.
    pytest.param(
        document,
        marks=pytest.mark.slow
        if document in LONG
        else pytest.mark.documents(len([c for c in in_document(document) if as_run(c)]) * 8 + 4),
    )
    for document in DOCUMENTS
    if any(map(as_run, in_document(document))) or example(document)
]


def decoder(folder: Path) -> Path:
    """A decoder most of whose time is attention, for thousands of tokens."""
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "head_dim": 64,
    }
    return save(folder, tiny_models.LLAMA_GQA, max_position_embeddings=2048, **sizes)


def fill(folder: Path, document: str) -> None:
    """What the commands of a document find beside the repository: a model, texts, a solver."""
    texts = [example.text for example in demo_texts()[:96]]
    (folder / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    (folder / "mine.py").write_text(MINE + own_objective() + own_method(), encoding="utf-8")
    (folder / "DATA").mkdir()
    for part, own in {"train": texts[:48], "dev": texts[48:72], "test": texts[72:96]}.items():
        rows = ["label\ttext", *(f"{len(text) % 2}\t{text}" for text in own)]
        for path in (folder / "DATA" / f"{part}.tsv", folder / f"{part}.tsv"):
            path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    if document.startswith("benchmarks"):
        save(folder / "MODEL", tiny_models.BERT)
    else:
        decoder(folder / "MODEL")


def clean_copy(folder: Path) -> Path:
    """The files of the repository as a clone has them, with what is changed and not yet committed."""
    listed = [
        "git",
        "-C",
        str(ROOT),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    done = subprocess.run(listed, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("this is no git repository, which would tell its files")
    for name in done.stdout.split("\0"):
        if name and os.path.lexists(ROOT / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The line, run in a folder by the shell, with this Python and its programs first."""
    outer = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "PYTHONPATH"))}
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{outer['PATH']}"
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env={**outer, **quiet, "PATH": programs, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def parts(line: str) -> Iterator[list[str]]:
    """The arguments of each ``cahp`` in a line for the shell."""
    for part in line.split("&&"):
        words = shlex.split(part)
        if words[0] == "cahp":
            yield words[1:]


def test_every_command_is_run_or_excused() -> None:
    found = commands()
    known = {*SLOW, *INSTEAD, *EXCUSED}
    assert known <= {command.text for command in found}, "the documents no longer have these"
    words = {word for command in found for word in command.text.split(" ")}
    assert WORDS.keys() | LESS.keys() <= words
    # A placeholder, an ellipsis or an option in brackets cannot be meant to be run as it is.
    unclear = re.compile(r"\.\.\.|[\[<|]")
    for command in found:
        line = as_run(command)
        if line is not None and command.text not in INSTEAD:
            assert not unclear.search(line), f"{command} needs a word in `documents.py`"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_of_code_is_run_or_says_why_not(document: str) -> None:
    for fence in fences(document):
        assert fence.language in ("sh", "python", "text", "mermaid"), fence
        assert not fence.note or (fence.language == "python" and not fence.is_run), fence
        if fence.language == "python":
            compile(fence.code, document, "exec")


def test_the_page_on_models_names_the_classes_that_are_pruned() -> None:
    pytest.importorskip("PIL", reason="images need Pillow")
    from auto_classes import PRUNED

    page = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\*\*pruned|refused|could not be tried).*? \| (.*) \|$", page, re.M)
    named = [(kind, name) for kind, cell in rows for name in re.findall(r"`(\w+)`", cell)]
    assert len({name for _, name in named}) == len(named) > 40
    assert {name for kind, name in named if kind == "**pruned"} == set(PRUNED)


def test_every_option_of_cahp_exists() -> None:
    group: Any = typer.main.get_command(app)
    for command in commands():
        line = as_run(command) or (command.text if is_name(command) else "")
        for name, *arguments in filter(None, parts(line)) if line else ():
            assert name in group.commands, command
            if not is_name(command):
                group.commands[name].make_context(name, arguments).close()


def test_every_file_exists() -> None:
    for document, name in files():
        if "/" not in name:  # the text around it says in which folder
            assert any(ROOT.glob(f"**/{name}")), f"{document} names {name}"
            continue
        beside = (ROOT / document).parent
        assert any((folder / name).is_file() for folder in (beside, ROOT)), f"{document}: {name}"


def test_every_link_leads_to_a_file() -> None:
    for document in (*DOCUMENTS, "CHANGELOG.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        found = re.findall(r"(?<!\\)\]\(([^)#\s]+)[^)]*\)", re.sub(r"`[^`\n]*`", "", text))
        for link in found:
            if "://" not in link:
                assert (ROOT / document).parent.joinpath(link).exists(), f"{document}: {link}"


@pytest.mark.parametrize("document", RUN)
def test_the_commands_of_a_document_run(document: str, tmp_path: Path) -> None:
    """In order, in a clean copy, and its Python behind them; written pages are those of the repository."""
    copy = clean_copy(tmp_path)
    fill(copy, document)
    ran = [command for command in in_document(document) if as_run(command)]
    for command in ran:
        done = shell(as_run(command) or "", copy, PYTHONPATH=str(copy))
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}"
    if code := example(document):
        (copy / "example.py").write_text(code, encoding="utf-8")
        done = shell("python example.py", copy, PYTHONPATH=str(copy))
        assert done.returncode == 0, f"the Python of {document}\n{done.stdout[-4000:]}"
    pages = [path for path in (ROOT / "docs").iterdir() if path.is_file()]
    for page in ("README.md", *(f"docs/{path.name}" for path in pages)):
        if not document.startswith("benchmarks"):  # which measure anew
            assert (copy / page).read_bytes() == (ROOT / page).read_bytes(), page


@pytest.mark.slow
def test_what_installs_and_takes_long_runs_in_order(tmp_path: Path) -> None:
    """The README's two commands, what needs the demonstration, and the block for contributors."""
    copy = clean_copy(tmp_path)
    in_order = [c.text for document in DOCUMENTS for c in in_document(document) if c.text in SLOW]
    activated = "[ ! -e .venv ] || . .venv/bin/activate; "
    for command in dict.fromkeys(in_order):
        done = shell(activated + command, copy)
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}"
