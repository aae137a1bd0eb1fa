"""The citation is well formed, and of this release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import cahp_opt

ROOT = Path(__file__).parents[2]


def test_the_citation_is_of_this_release() -> None:
    yaml = pytest.importorskip("yaml", reason="transformers brings it along")
    found: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= found.keys()
    assert found["version"] == cahp_opt.__version__
    assert found["license"] == "Apache-2.0" and found["type"] == "software"
    (paper,) = found["references"]
    assert [a["family-names"] for a in paper["authors"]] == ["Livertovsky", "Somin", "Singer"]
    assert paper["url"].endswith("2606.19150")
