"""Draws the picture of the rooms as boxes: the script that draws such pictures would come from another host."""

from __future__ import annotations

import html
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

PICTURE = re.compile(r"^```mermaid\nflowchart TD\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
FLOOR = re.compile(r'^ *subgraph \w+\["([^"]+)"\]\n(.*?)^ *end$', flags=re.DOTALL | re.MULTILINE)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the picture, which the repository's own pages draw."""
    return PICTURE.sub(lambda found: drawn(found[1]), markdown)


def drawn(picture: str) -> str:
    """The floors from top to bottom, their rooms, and under each what it imports."""
    names = dict(re.findall(r'(\w+)\["([^"]+)"\]', picture))
    arrows = re.findall(r"(\w+) --> (\w+)", picture)
    parts = ['<div class="rooms" markdown="0">']
    for title, inside in FLOOR.findall(picture):
        parts.append(f'<section><p class="floor">{html.escape(title)}</p><div>')
        for room in re.findall(r'(\w+)\["', inside):
            below = ", ".join(names[b] for a, b in arrows if a == room)
            imported = f"<small>&darr; {html.escape(below)}</small>" if below else ""
            parts.append(f"<p><strong>{html.escape(names[room])}</strong>{imported}</p>")
        parts.append("</div></section>")
    return "\n".join([*parts, "</div>"])
