"""A real browser for tests of pages: Debian's Chromium, without a network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


_running: list[Any] = []


@contextmanager
def _browser() -> Iterator[Any]:
    """Start a browser, or take the one that runs: a process can have one."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if _running:
        yield _running[0]
        return
    with sync_api.sync_playwright() as playwright:
        _running.append(playwright.chromium.launch(executable_path=CHROMIUM, args=_OPTIONS))
        try:
            yield _running[0]
        finally:
            _running.pop().close()


@contextmanager
def opened(
    page: Path, width: int = 1400, height: int = 900, dark: bool = False, complete: bool = True
) -> Iterator[Any]:
    """Open a page from its folder, and check at the end that it wrote no error and asked for nothing elsewhere.

    Args:
        page: HTML file.
        width: width of the window in pixels.
        height: height of the window.
        dark: whether the reader prefers dark pages.
        complete: whether the page has all files that it asks for.
    """
    wrong: list[str] = []
    with _browser() as browser:
        scheme = "dark" if dark else "light"
        window = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        window.on("pageerror", lambda error: wrong.append(str(error)))
        window.on("console", lambda line: wrong.append(line.text) if complete and line.type == "error" else None)
        window.on(
            "request",
            lambda request: (
                None if request.url.split(":")[0] in ("file", "data", "blob") else wrong.append(request.url)
            ),
        )
        window.goto(page.resolve().as_uri())
        yield window
        window.close()
    assert not wrong


def accessibility_violations(window: Any) -> list[str]:
    """Return the violations of WCAG's levels A and AA that axe finds on a page, with the first element of each."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    levels = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}
    # style sheets beside a page cannot be read again by a script
    found = axe.Axe().run(window, options={**levels, "preload": False}).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found]
