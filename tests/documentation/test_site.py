"""The hooks of the site, by small cases; `.ci/run` builds the whole of it."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

mkdocs = pytest.importorskip("mkdocs", reason="the docs extra is not installed")


def hook(name: str) -> dict[str, Any]:
    """What a file in `website` defines."""
    return runpy.run_path(str(ROOT / "website" / f"{name}.py"))


@pytest.mark.parametrize(
    ("path", "page"),
    [
        ("README.md", "index.md"),
        ("docs/use.md", "use.md"),
        ("docs/demo.svg", "demo.svg"),
        ("benchmarks/README.md", "benchmarks/README.md"),
        ("notebooks/gqa_decoder.ipynb", "notebooks/gqa_decoder.md"),
        ("solvers/cahp.py", "source/solvers/cahp.py.md"),
    ],
)
def test_every_file_has_its_place(path: str, page: str) -> None:
    assert hook("repository")["place"](path) == page


def test_links_in_code_stay() -> None:
    found = hook("repository")["CODE_OR_LINK"].findall(
        "[a](x.md#y) `[b](z.md)` [c](https://d)\n```sh\n[e](f.md)\n```\n[g](h.py)"
    )
    assert [(link, anchor) for code, link, anchor in found if not code] == [
        ("x.md", "#y"),
        ("h.py", ""),
    ]


def test_formulas_need_no_script() -> None:
    pytest.importorskip("latex2mathml", reason="the docs extra is not installed")
    content = (
        r'<p>a <span class="arithmatex">\(x &lt; 1\)</span></p>'
        r'<div class="arithmatex">\[\sum_i x_i\]</div>'
    )
    made = hook("formulas")["on_page_content"](content, None, None, None)
    assert made.count("<math") == 2 and 'display="block"' in made
    assert "arithmatex" not in made and "lt" not in made and "<<" not in made


def test_the_picture_has_every_room_and_arrow() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    made = hook("rooms_picture")["on_page_markdown"](page, None, None, None)
    assert "mermaid" not in made
    assert page.count('"]\n') - page.count("subgraph") == made.count("<strong>")
    assert page.count(" --> ") == made.count("&darr;") + made.partition('class="rooms"')[
        2
    ].partition("\n</div>\n")[0].count(", ")


def test_docstrings_refer_to_pages() -> None:
    link = hook("reference")["ROLE"].sub(
        hook("reference")["_link"], ":class:<code>~cahp_opt.solvers.Greedy</code>"
    )
    assert link == (
        '<autoref optional identifier="cahp_opt.solvers.Greedy"><code>Greedy</code></autoref>'
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('<script src="https://a.b/c.js"></script>', ["https://a.b/c.js"]),
        ('<link href="//a.b/c.css" rel=stylesheet>', ["//a.b/c.css"]),
        ("@import 'https://a.b/c.css'", ["https://a.b/c.css"]),
        (
            '<a href="https://a.b">x</a><img src="c.svg"><link rel="canonical" href="https://a.b">',
            [],
        ),
    ],
)
def test_what_another_host_would_give_is_found(text: str, found: list[str]) -> None:
    assert hook("self_contained")["foreign"](text) == found


def test_every_page_is_in_the_navigation() -> None:
    """Those made of files that a document links to are reached by that link."""
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    pages |= {f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")}
    pages |= {f"reference/{package}.md" for package in hook("reference")["PACKAGES"]}
    named = {line.split()[-1] for line in settings.splitlines() if line.endswith(".md")}
    assert pages <= named, pages - named
