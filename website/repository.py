"""Makes pages of the repository's files that documents link to, so that the links work here and in the repository.

The README is the first page, notebooks are pages of their cells, and any other file is a page of its source.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
FIRST = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")
CODE_OR_LINK = re.compile(r"(^ *```.*?^ *```|`[^`\n]*`)|\]\(([^)\s#:]+)(#[^)\s]*)?\)", re.S | re.M)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the first documents, and whatever a document leads to."""
    todo = [*FIRST, *(f"docs/{f.src_uri}" for f in files.documentation_pages())]
    done = set[str]()
    while todo:
        path = todo.pop()
        if path in done or not (ROOT / path).is_file():
            continue  # what is missing is reported where the page with the link is built
        done.add(path)
        if not path.startswith("docs/"):
            files.append(_page_of(path, config))
        if path.endswith(".md"):
            todo += _linked(path, (ROOT / path).read_text(encoding="utf-8"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the links of a document lead to pages."""
    source = page.file.abs_src_path
    if source is None or not Path(source).is_relative_to(ROOT):
        return markdown
    path = Path(source).relative_to(ROOT).as_posix()
    here = posixpath.dirname(page.file.src_uri)

    def moved(found: re.Match[str]) -> str:
        code, link, anchor = found.groups()
        if code:
            return found[0]
        target = place(posixpath.normpath(posixpath.join(posixpath.dirname(path), link)))
        return f"]({posixpath.relpath(target, here)}{anchor or ''})"

    return CODE_OR_LINK.sub(moved, markdown)


def place(path: str) -> str:
    """Where the site has a file of the repository: both from their roots."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.endswith(".md"):
        return path
    if path.endswith(".ipynb"):
        return str(PurePosixPath(path).with_suffix(".md"))
    return f"source/{path}.md"


def _linked(path: str, text: str) -> Iterator[str]:
    for code, link, _ in CODE_OR_LINK.findall(text):
        if not code:
            yield posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def _page_of(path: str, config: MkDocsConfig) -> File:
    if path.endswith(".md"):
        return File.generated(config, place(path), abs_src_path=str(ROOT / path))
    text = (ROOT / path).read_text(encoding="utf-8")
    return File.generated(
        config,
        place(path),
        content=_cells(path, text) if path.endswith(".ipynb") else _source(path, text),
    )


def _cells(path: str, text: str) -> str:
    parts = list[str]()
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    parts.insert(1, f"This is the notebook `{path}`, which the tests run.")
    return "\n\n".join(parts)


def _source(path: str, text: str) -> str:
    return f"# {PurePosixPath(path).name}\n\n`{path}`\n\n````{PurePosixPath(path).suffix[1:]}\n{text}````\n"
