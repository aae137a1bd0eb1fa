"""Pages in a browser without a window: they are drawn, in light and dark, and load nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from studies_by_hand import study

from cahp_opt.reports.study_page import study_page

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no chromium")
@pytest.mark.parametrize("width", [1100, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_browser_draws_the_page(tmp_path: Path, theme: str, width: int) -> None:
    pillow = pytest.importorskip("PIL.Image")
    page, shot = tmp_path / "report.html", tmp_path / "shot.png"
    html = study_page(study(seeds=1)).html()
    page.write_text(
        html.replace('<html lang="en">', f'<html lang="en" data-theme="{theme}">'), "utf-8"
    )
    done = subprocess.run(
        [
            str(BROWSER),
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},3000",
            f"--screenshot={shot}",
            page.as_uri(),
        ],
        capture_output=True,
        timeout=120,
    )
    assert shot.is_file(), done.stderr.decode()[-2000:]
    with pillow.open(shot) as picture:
        seen = picture.convert("RGB")
        colours = {colour for _, colour in seen.getcolors(2**24)}
        assert seen.getpixel((2, 2)) == (
            (255, 255, 255) if theme == "light" else (0x12, 0x16, 0x1C)
        )
    series = (0x25, 0x63, 0xEB) if theme == "light" else (0x6E, 0xA0, 0xFF)
    assert series in colours  # the charts follow the page
    assert not {(0x0A, 0x0B, 0x01), (0x0A, 0x0C, 0x00)} & colours
