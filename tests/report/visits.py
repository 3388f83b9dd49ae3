"""Pages in a browser."""

from __future__ import annotations

import time
from typing import Any

from playwright.sync_api import Browser, Page


def until(page: Page, expression: str, seconds: float = 60) -> None:
    """Wait until an expression is true of a page (Playwright's own waiting needs eval, which the policy forbids)."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"never came true: {expression}"
        page.wait_for_timeout(100)


class Visit:
    """A page in a browser, with whatever went wrong on it."""

    def __init__(self, browser: Browser, address: str, **options: Any) -> None:
        self.troubles: list[str] = []
        self.page: Page = browser.new_page(**{"viewport": {"width": 1200, "height": 900}, **options})
        self.page.on(
            "console", lambda said: self.troubles.append(said.text) if said.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("requestfailed", lambda request: self.troubles.append(f"failed: {request.url}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.requests: list[str] = []
        self.page.goto(address)

    def draw_all(self) -> int:
        """Scroll through the page until every figure is drawn; how many there are."""
        plots = self.page.locator(".plot")
        for plot in plots.all():
            if plot.is_visible():
                plot.scroll_into_view_if_needed()
                plot.locator(".main-svg").first.wait_for()
        return plots.count()
