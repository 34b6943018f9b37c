"""HTML pages as a browser shows them."""

from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")


def open_page(browser: Browser, path: Path, width: int, **context: Any) -> tuple[Page, list[str]]:
    """The page after its figures are drawn, and everything it complained about or asked the network for."""
    page = browser.new_context(viewport={"width": width, "height": 900}, **context).new_page()
    faults: list[str] = []
    own = path.as_uri()
    page.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: faults.append(f"error: {error}"))
    page.on("request", lambda asked: None if asked.url.startswith((own, "data:")) else faults.append(asked.url))
    page.goto(own)
    for figure in page.locator("[data-figure]").all():
        figure.locator(".main-svg").first.wait_for()
    return page, faults
