"""The page at `/` in Chromium: typed, answered, compared, on a phone, in Japanese, in the dark, by keyboard alone."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from ppe_lora.serving.backend import ApiError, Ask, Reply, Spread
from ppe_lora.tasks.scores import ScoresTask
from tests.serving import Running, Scripted, serving

SOFT = {"energy": 20, "warmth": 80, "brightness": 41, "acousticness": 74, "complexity": 25, "nostalgia": 63}
LOUD = {"energy": 96, "warmth": 35, "brightness": 88, "acousticness": 4, "complexity": 51, "nostalgia": 9}


class Moods(Scripted):
    """Two moods of six scores: loud where the request says so. `shift` makes another model of it."""

    task = ScoresTask()

    def __init__(self, shift: int = 0, sure: bool = True) -> None:
        super().__init__()
        self.shift, self.sure = shift, sure

    async def answer(self, asks: list[Ask]) -> list[Reply]:
        await super().answer(asks) if self.error else self.asked.extend(asks)
        return [self._reply(ask) for ask in asks]

    def _reply(self, ask: Ask) -> Reply:
        mood = LOUD if "loud" in ask.request.lower() else SOFT
        moved = {key: min(100, value + self.shift) for key, value in mood.items()}
        spread = {key: Spread(9.0, max(0, value - 12), min(100, value + 15)) for key, value in moved.items()}
        return Reply(moved, spread if self.sure else None, True, 60, 30)


@pytest.fixture
def models() -> dict[str, Moods]:
    return {"tuned": Moods(), "base": Moods(shift=7, sure=False)}


@pytest.fixture
def server(models: dict[str, Moods]) -> Iterator[Running]:
    with serving(models) as running:
        yield running


def open_page(browser: Browser, server: Running, width: int = 1280, **context: Any) -> tuple[Page, list[str]]:
    """The page, and everything it complained about or asked of others."""
    context = {"locale": "en-US", "reduced_motion": "reduce", **context}
    page = browser.new_context(viewport={"width": width, "height": 900}, **context).new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: faults.append(f"error: {error}"))
    page.on("request", lambda request: None if request.url.startswith(server.url) else faults.append(request.url))
    page.goto(server.url)
    expect(page.locator("#panels select")).to_have_count(1)
    return page, faults


def shown(page: Page, panel: int = 0) -> dict[str, int]:
    rows = page.locator(".panel").nth(panel).locator("li")
    return {row.locator(".name").inner_text(): int(row.locator("b").inner_text()) for row in rows.all()}


def values_of(page: Page, expected: dict[str, int], panel: int = 0) -> None:
    for key, value in expected.items():
        expect(page.locator(".panel").nth(panel).locator(f"[data-key={key}] b")).to_have_text(str(value))


def test_type_enter_and_see_the_numbers(browser, server):
    """The bars are as long as the numbers, the lines as wide as the intervals, and the time is said."""
    page, faults = open_page(browser, server)
    page.keyboard.type("something soft")  # the field has the focus
    page.keyboard.press("Enter")
    values_of(page, SOFT)
    track = page.locator("[data-key=warmth] .track")
    whole, bar, line = (track.bounding_box(), *(track.locator(name).bounding_box() for name in (".bar", ".range")))
    assert bar["width"] / whole["width"] == pytest.approx(0.80, abs=0.01)
    assert (line["x"] - whole["x"]) / whole["width"] == pytest.approx(0.68, abs=0.01)
    assert line["width"] / whole["width"] == pytest.approx(0.27, abs=0.01)
    assert track.get_attribute("aria-valuetext") == "80; 80 % between 68 and 95"
    expect(page.locator(".latency")).to_have_text(re.compile(r"^[\d.]+ ms$"))
    expect(page.locator("#note")).to_contain_text("with a probability of 80 %, measured on validation data")
    page.locator("#request").fill("LOUD")
    page.locator("#request").press("Control+Enter")
    values_of(page, LOUD)
    page.locator("#request").press("Shift+Enter")
    page.keyboard.type("second line")
    assert page.locator("#request").input_value() == "LOUD\nsecond line"
    assert faults == []
    page.context.close()


def test_the_bars_move(browser, server):
    """A number that jumps tells nobody what changed."""
    page, _ = open_page(browser, server, reduced_motion="no-preference")
    page.locator("#request").fill("soft")
    page.locator("#request").press("Enter")
    values_of(page, SOFT)
    bar = "document.querySelector('[data-key=energy] .bar').getBoundingClientRect().width"
    page.wait_for_timeout(700)
    before = page.evaluate(bar)
    widths = page.evaluate(
        f"""async () => {{
          const seen = [];
          document.getElementById("request").value = "loud";
          document.getElementById("go").click();
          for (let at = 0; at < 90; at++) {{ await new Promise(requestAnimationFrame); seen.push({bar}); }}
          return seen;
        }}"""
    )
    assert [width for width in widths if before + 20 < width < widths[-1] - 20]
    values_of(page, LOUD)
    page.context.close()


def test_two_models_side_by_side(browser, server, models):
    page, faults = open_page(browser, server)
    page.locator("#request").fill("soft")
    page.locator("#request").press("Enter")
    values_of(page, SOFT)
    page.get_by_role("button", name="Compare two").click()
    values_of(page, {key: value + 7 for key, value in SOFT.items()}, panel=1)
    values_of(page, SOFT)
    second = page.locator(".panel").nth(1)
    expect(second.locator("[data-key=energy] small")).to_have_text("+7")
    assert second.locator(".range:visible").count() == 0
    expect(page.locator("#note")).to_contain_text("numbers without their uncertainty")
    boxes = [page.locator(".panel").nth(at).bounding_box() for at in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"]
    second.locator("select").select_option("tuned")
    values_of(page, SOFT, panel=1)
    page.get_by_role("button", name="One model").click()
    expect(page.locator(".panel")).to_have_count(1)
    page.locator(".panel select").select_option("base")
    values_of(page, {key: value + 7 for key, value in SOFT.items()})
    assert len(models["tuned"].asked) == 2
    assert faults == []
    page.context.close()


def test_the_json_is_copied_as_the_game_gets_it(browser, server):
    page, _ = open_page(browser, server, permissions=["clipboard-read", "clipboard-write"])
    expect(page.locator(".copy")).to_be_disabled()
    page.locator("#request").fill("soft")
    page.get_by_role("button", name="Answer").click()
    page.get_by_role("button", name="Copy JSON").click()
    expect(page.locator(".copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == json.dumps(SOFT, separators=(",", ":"))
    page.context.close()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (320, "light")])
def test_on_a_phone_in_japanese(browser, server, models, width, scheme):
    """Nothing runs off the side, and a Japanese input method's Enter does not send half a word."""
    page, faults = open_page(browser, server, width, locale="ja-JP", color_scheme=scheme, has_touch=True)
    assert page.get_by_role("button", name="答える").is_visible()
    page.locator("#context").fill("weather=rain、time=night")
    page.locator("#request").fill("雨の夜")
    page.evaluate(
        """document.getElementById("request").dispatchEvent(
          new KeyboardEvent("keydown", { key: "Enter", isComposing: true, bubbles: true, cancelable: true }))"""
    )
    page.wait_for_timeout(100)
    assert models["tuned"].asked == []
    page.get_by_role("button", name="答える").tap()
    values_of(page, SOFT)
    assert models["tuned"].asked == [("雨の夜", "ja", {"weather": "rain", "time": "night"})]
    page.get_by_role("button", name="二つを比較").tap()
    expect(page.locator(".panel")).to_have_count(2)
    values_of(page, SOFT)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    inside = "e => e.closest('.unseen') || e.getBoundingClientRect().right <= innerWidth + 1"
    assert page.evaluate(f"[...document.querySelectorAll('body *')].every({inside})")
    assert page.evaluate("document.documentElement.lang") == "ja"
    page.get_by_role("button", name="English").tap()
    expect(page.locator("#go")).to_have_text("Answer")
    assert faults == []
    page.context.close()


def test_by_keyboard_alone(browser, server):
    """Every control is reached by Tab, in the order it is read, and shows that it is."""
    page, _ = open_page(browser, server)
    page.locator("#request").fill("soft")
    page.keyboard.press("Enter")
    values_of(page, SOFT)
    reached = []
    for _ in range(7):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
            )
        )
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert reached == ["context", "go", "BUTTON", "BUTTON", "BUTTON", "SELECT", "quiet copy"]
    page.context.close()


def test_what_goes_wrong_is_said(browser, server, models):
    page, _ = open_page(browser, server)
    page.locator("#request").fill("soft")
    models["tuned"].error = ApiError(503, "overloaded", "too many requests are waiting; try again", 1)
    page.locator("#request").press("Enter")
    expect(page.get_by_role("alert")).to_have_text("too many requests are waiting; try again")
    expect(page.locator("[data-key=energy] b")).to_have_text("–")
    models["tuned"].error = None
    page.locator("#context").fill("rain")
    page.locator("#request").press("Enter")
    expect(page.get_by_role("alert")).to_have_text("Circumstances: expected name=value, name=value.")
    page.locator("#context").fill("")
    page.locator("#request").press("Enter")
    values_of(page, SOFT)
    expect(page.locator("#message")).to_be_hidden()
    page.route("**/api/interpreter", lambda route: route.abort())
    page.locator("#request").press("Enter")
    expect(page.get_by_role("alert")).to_have_text("The server does not answer.")
    page.context.close()


def test_a_key_can_be_given(browser, models):
    with serving(models, api_key="secret-key") as server:
        page = browser.new_context(locale="en-US").new_page()
        page.goto(server.url)
        expect(page.get_by_role("alert")).to_have_text("This server asks for an API key.")
        page.get_by_label("API key").fill("secret-key")
        page.get_by_label("API key").press("Enter")
        expect(page.locator(".panel")).to_have_count(1)
        page.locator("#request").fill("soft")
        page.locator("#request").press("Enter")
        values_of(page, SOFT)
        expect(page.locator("#key")).to_be_hidden()
        page.context.close()


def test_only_the_page_s_own_script_runs_and_nothing_leaves(browser, server):
    """The second fence: whatever ended up in the page could neither run nor send anything elsewhere."""
    page, faults = open_page(browser, server)
    page.evaluate(
        "const s = document.createElement('script'); s.textContent = 'window.injected = true'; document.body.append(s)"
    )
    sent = page.evaluate("fetch('https://example.org/').then(() => 'sent', () => 'blocked')")
    assert (page.evaluate("window.injected"), sent) == (None, "blocked")
    assert any("Content Security Policy" in fault for fault in faults)
    page.context.close()
