"""Makes the reference: one page per public package, one entry per name that it exports."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "cahp_opt",
    "cahp_opt.torch",
    "cahp_opt.objectives",
    "cahp_opt.solvers",
    "cahp_opt.methods",
    "cahp_opt.testing",
)
ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):<code>(~?)([\w.]+)</code>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every package."""
    for package in PACKAGES:
        files.append(File.generated(config, f"reference/{package}.md", content=page_of(package)))
    return files


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the cross-references of docstrings into links, and the marks of their examples into colons."""
    if not page.file.src_uri.startswith("reference/"):
        return content
    return ROLE.sub(_link, content).replace("::</p>", ":</p>")


def page_of(package: str) -> str:
    """The page as Markdown, read from the source without running it."""
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
    words = (ast.get_docstring(tree) or "").split("\n\n")[0]
    names = [n for n in exported(tree) if not n.startswith("_")]
    return "\n\n".join([f"# `{package}`", words, *(f"::: {package}.{name}" for name in names)])


def exported(tree: ast.Module) -> list[str]:
    """The names in ``__all__``."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    raise ValueError("a package of the reference must have `__all__`.")


def _link(found: re.Match[str]) -> str:
    short, name = found.groups()
    shown = name.rpartition(".")[2] if short else name
    return f'<autoref optional identifier="{name}"><code>{shown}</code></autoref>'
