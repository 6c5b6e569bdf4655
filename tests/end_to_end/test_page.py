"""The page, in a browser, by keyboard alone: ask, vary, continue; on a desk and on a phone."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser

FOCUSED = "document.activeElement.id || document.activeElement.textContent"
ANSWERED = "document.querySelectorAll('#responses li').length"


@pytest.fixture(scope="module")
def page(bundle: Path) -> Iterator[str]:
    """Address of a page on the tiny bundle."""
    command = [sys.executable, "-m", "siserve", "serve", "--model", str(bundle), "--http-port", "0"]
    server = subprocess.Popen(
        [*command, "--port", "0", "--metrics-port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None and server.stderr is not None
    try:
        assert server.stdout.readline().startswith("serving")
        (address,) = re.findall(r"page on (\S+)", server.stderr.readline())
        yield address
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=30) == 0
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
        server.stderr.close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    made = Browser(tmp_path / "profile")
    yield made
    made.close()


def shoot(browser: Browser, name: str) -> None:
    """Keep a screenshot where SISERVE_SCREENSHOTS names a folder."""
    folder = os.environ.get("SISERVE_SCREENSHOTS")
    if folder:
        browser.screenshot(Path(folder) / f"{name}.png")


@pytest.mark.slow
def test_a_dialog_goes_on_by_keyboard_alone(browser: Browser, page: str) -> None:
    browser.resize(1100, 800, is_phone=False)
    browser.open(page)
    browser.wait_for("document.querySelector('#model').textContent.includes('tiny@1')")
    assert browser.evaluate(FOCUSED) == "text"
    browser.type("hi , do you like the garden?")
    browser.press("Enter")
    browser.wait_for(f"{ANSWERED} === 5")
    assert browser.evaluate("document.querySelectorAll('#turns li').length") == 1
    about = browser.evaluate("document.querySelector('#about').textContent")
    assert re.search(r"5 responses: distinct-1 \d\.\d\d, distinct-2 .* ms, seed \d+, tiny@1", about)
    first = browser.evaluate("document.querySelector('#responses p').firstChild.textContent")
    shoot(browser, "responses")
    assert browser.evaluate(FOCUSED) == "Vary"  # where the answer begins
    browser.press("Enter")
    browser.wait_for("document.querySelector('#about').textContent.startsWith('Variants of')")
    assert first in browser.evaluate("document.querySelector('#about').textContent")
    assert browser.evaluate(ANSWERED) == 5
    browser.press("Tab")
    assert browser.evaluate(FOCUSED) == "Continue"
    browser.press("Enter")
    browser.wait_for("document.querySelectorAll('#turns li').length === 2")
    assert browser.evaluate(FOCUSED) == "text"
    browser.type("what about the dog?")
    browser.press("Enter")
    browser.wait_for(f"{ANSWERED} === 5")
    speakers = browser.evaluate(
        "[...document.querySelectorAll('#turns b')].map((b) => b.textContent)"
    )
    assert speakers == ["A", "B", "A"]
    assert browser.console == []


@pytest.mark.slow
def test_options_are_reached_in_order_and_are_sent(browser: Browser, page: str) -> None:
    browser.open(page)
    browser.wait_for("document.querySelector('#model').textContent.includes('tiny@1')")
    order = []
    for _ in range(7):
        order.append(browser.evaluate(FOCUSED))
        if order[-1] == "n":
            for _ in range(3):
                browser.press("ArrowRight")
        if order[-1] == "seed":
            browser.type("18446744073709551615")
        browser.press("Tab")
    assert order == ["text", "Respond", "n", "temperature", "diversity", "seed", "restart"]
    browser.evaluate("document.querySelector('#text').focus()")
    browser.type("hi")
    browser.press("Enter")
    browser.wait_for(f"{ANSWERED} === 8")
    about = browser.evaluate("document.querySelector('#about').textContent")
    assert "seed 18446744073709551615" in about
    assert browser.console == []


@pytest.mark.slow
def test_a_phone_shows_all_of_it_and_what_is_wrong_is_said(browser: Browser, page: str) -> None:
    browser.resize(360, 740, is_phone=True)
    browser.open(page)
    browser.wait_for("document.querySelector('#model').textContent.includes('tiny@1')")
    browser.type("hi <b>there</b>")
    browser.press("Enter")
    browser.wait_for(f"{ANSWERED} === 5")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 360
    smallest = "Math.min(...[...document.querySelectorAll('button')].map((b) => b.offsetHeight))"
    assert browser.evaluate(smallest) >= 44  # large enough for a finger
    assert (
        browser.evaluate("document.querySelector('#turns span').textContent") == "hi <b>there</b>"
    )
    shoot(browser, "phone")
    browser.evaluate("document.querySelector('#seed').value = '99999999999999999999'")
    browser.evaluate("document.querySelector('#text').focus()")
    browser.press("Enter")
    browser.wait_for("document.querySelector('#about').classList.contains('wrong')")
    assert browser.evaluate("document.querySelector('#about').textContent").startswith("body: ")
