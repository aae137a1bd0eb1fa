"""Turns formulas into MathML while the site is built: browsers draw it without a script."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', flags=re.DOTALL
)
UNDER = re.compile(r"\\(max|min)_(\w|\{(?:[^{}]|\{[^{}]*\})*\})")
"""What stands below ``max`` where a formula has a line to itself; the converter would put it beside."""


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace what Markdown marked as formulas."""

    def drawn(found: re.Match[str]) -> str:
        block = found[1] == "div"
        tex = html.unescape(found[2]).strip()
        if block:
            tex = UNDER.sub(r"\\underset{\2}{\\\1}", tex)
        made = convert(tex, display="block" if block else "inline")
        return f'<div class="formula">{made}</div>' if block else made

    return FORMULA.sub(drawn, content)
