"""The page on architecture says what the code says: its rooms, arrows, files, names and terms."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

import pytest
from documents import in_document
from rooms import FLOOR, ROOT, imported, modules, of_module, room_imported

import cahp_opt
import cahp_opt.objectives
import cahp_opt.solvers
import cahp_opt.testing
import cahp_opt.torch

DOCUMENT = "docs/architecture.md"
PAGE = (ROOT / DOCUMENT).read_text(encoding="utf-8")
PROSE = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
PUBLIC = (cahp_opt, cahp_opt.objectives, cahp_opt.solvers, cahp_opt.testing, cahp_opt.torch)
LINKING = ("README.md", "CONTRIBUTING.md")


def picture() -> tuple[dict[str, str], set[tuple[str, str]]]:
    """The rooms in the picture by their short names, and the arrows between the rooms."""
    (drawn,) = re.findall(r"```mermaid\n(.*?)```", PAGE, flags=re.DOTALL)
    named = dict(re.findall(r'^ *(\w+)\["([^"]+)"\]$', drawn, flags=re.MULTILINE))
    arrows = re.findall(r"^ *(\w+) --> (\w+)$", drawn, flags=re.MULTILINE)
    assert len(named) + len(arrows) + 2 * drawn.count("subgraph") + 1 == len(drawn.splitlines())
    return named, {(named[above], named[below]) for above, below in arrows}


def imports() -> set[tuple[str, str]]:
    """The pairs of rooms of which the first imports the second."""
    pairs = {
        (of_module(name), room_imported(parts))
        for name, path in modules()
        for _, parts in imported(path.read_text(encoding="utf-8"))
    }
    return {(above, below) for above, below in pairs if above != below}


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its first two lines."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def defined(file: str) -> set[str]:
    """What a file defines at its top level."""
    found: set[str] = set()
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def is_public(name: str) -> bool:
    """Whether users can write it, or it is an attribute of what they can."""
    first, *rest = name.split(".")
    for package in PUBLIC:
        found: Any = getattr(package, first, None)
        for part in rest if first in package.__all__ else ():
            found = getattr(found, part, None)
        if first in package.__all__ and found is not None:
            return True
    return False


def spans() -> Iterator[str]:
    """What the page sets as code, except in fences."""
    yield from re.findall(r"`([^`\n]+)`", PROSE)


def test_every_room_is_on_the_page() -> None:
    named, _ = picture()
    assert sorted(named.values()) == sorted(FLOOR)
    listed = [room for first, _ in rows("Rooms") for room in re.findall(r"`([^`]+)`", first)]
    assert sorted(listed) == sorted(FLOOR)


def test_every_arrow_is_an_import_and_none_goes_up() -> None:
    named, arrows = picture()
    assert arrows <= imports(), arrows - imports()
    assert all(FLOOR[above] > FLOOR[below] for above, below in arrows)
    assert {room for arrow in arrows for room in arrow} == set(named.values())


@pytest.mark.parametrize("heading", ["Where is the answer?", "Nouns"])
def test_the_file_that_answers_has_what_the_table_says(heading: str) -> None:
    assert rows(heading)
    for row in rows(heading):
        (file,) = (cell for cell in row if cell.startswith("`cahp_opt/"))
        (name,) = (c for c in row if re.fullmatch(r"`\w+`", c))
        assert name.strip("`") in defined(file.strip("`")), f"{file} does not define {name}"


def test_every_name_exists() -> None:
    known = {name.strip("`") for row in rows("Where is the answer?") for name in row[1:]}
    known |= {package.__name__ for package in PUBLIC}
    known |= set(FLOOR) | {command.text for command in in_document(DOCUMENT)}
    for span in spans():
        if "/" in span and span not in known:
            assert (ROOT / span).exists(), span
        elif re.fullmatch(r"[A-Za-z_][\w.]*", span):
            assert span in known or is_public(span) or is_public(f"Objective.{span}"), span
        else:
            assert span in known or re.fullmatch(r"&|[a-z]+=\w+", span), span


def test_every_term_has_one_meaning() -> None:
    terms = [term for term, _ in rows("Glossary")]
    assert terms == sorted(set(terms)) and len(terms) > 30
    assert all(re.fullmatch(r"[a-z -]+", term) for term in terms)


def test_no_class_or_function_is_defined_twice() -> None:
    where: dict[str, str] = {}
    for module, path in modules():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
                continue
            if (
                of_module(module) == "cli"
                and node.name in cahp_opt.__all__ + cahp_opt.torch.__all__
            ):
                continue  # a command is called like what it runs
            if "overload" in map(ast.unparse, node.decorator_list):
                continue  # a form of the one that is defined behind it
            assert node.name not in where, f"{node.name}: {module} and {where[node.name]}"
            where[node.name] = module


@pytest.mark.parametrize("document", LINKING)
def test_it_is_linked(document: str) -> None:
    assert f"({DOCUMENT})" in (ROOT / document).read_text(encoding="utf-8")
