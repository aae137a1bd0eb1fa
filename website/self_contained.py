"""Look whether a page of the built site loads anything from another host.

python website/self_contained.py site
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

LOADED = re.compile(
    r"<(?:script|img|source|iframe|video|audio|embed)\b[^>]*\b(?:src|srcset)=[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preconnect|preload|icon))[^>]*\bhref=[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|(?:@import|url\()\s*[\"']?((?:https?:)?//[^\"'\s)]+)"
)


def foreign(text: str) -> list[str]:
    """The addresses on other hosts that a page or a style sheet loads by itself; links are not among them."""
    return ["".join(found) for found in LOADED.findall(text)]


def main(folder: Path) -> str | None:
    """What was found, as an error; None if nothing was."""
    pages = [path for kind in ("html", "css") for path in folder.rglob(f"*.{kind}")]
    if not pages:
        return f"there is no site in {folder}; run mkdocs build"
    found = [f"{p}: {a}" for p in pages for a in foreign(p.read_text(encoding="utf-8"))]
    return "\n".join(found) or None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
