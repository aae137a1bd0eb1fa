"""What every HTML page must be: well formed, complete in itself, and told to those who see no pictures."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input"}
LOADING = {"src", "href", "xlink:href", "data", "srcset", "poster", "action"}


class Reader(HTMLParser):
    """Follows the elements of a page, and keeps its words and what is wrong with it."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: dict[str, int] = {}
        self.words: list[str] = []
        self.pictures = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.tags[tag] = self.tags.get(tag, 0) + 1
        if len(told) != len(attrs):
            self.faults.append(f"an attribute of {tag} is there twice")
        self.ids += [name for name in (told.get("id"),) if name]
        for name in LOADING & set(told):
            target = told[name] or ""
            if target.startswith("#"):
                self.links.append(target[1:])
            elif target != "data:,":
                self.faults.append(f"{tag} loads {target}")
        if tag == "svg" and not (told.get("role") == "img" and told.get("aria-labelledby")):
            self.faults.append("a picture has no words in its place")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes what is not open")

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)
        elif re.search(r"url\((?!#)|@import|https?:", data):
            self.faults.append(f"{self.open[-1]} loads something")


def read_page(html: str) -> Reader:
    """The page, after a look at its form: elements that close, links that lead somewhere, nothing loaded."""
    page = Reader()
    page.feed(html)
    page.close()
    assert not page.faults and not page.open, (page.faults, page.open)
    assert len(set(page.ids)) == len(page.ids), "an id is there twice"
    assert set(page.links) <= set(page.ids), "a link leads nowhere"
    assert html.startswith("<!DOCTYPE html>") and '<html lang="en">' in html
    assert page.tags["title"] >= 1 and page.tags["h1"] == 1
    return page


def words_of(html: str) -> str:
    """The words of a page with single blanks between them."""
    return " ".join(" ".join(read_page(html).words).split())
