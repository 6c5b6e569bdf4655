"""Drive a headless Chromium by its own protocol over pipes; for tests of the page."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Browser:
    """One page of a browser of its own; what its console says is kept."""

    def __init__(self, profile: Path) -> None:
        program = next(filter(None, map(shutil.which, _NAMES)), None)
        if program is None:
            pytest.skip("chromium is not installed")
        to_browser, ours = os.pipe()
        theirs, from_browser = os.pipe()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        redirect = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        command = [program, *options, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            ["bash", "-c", redirect, "bash", *command],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._write, self._read = os.fdopen(ours, "wb"), os.fdopen(theirs, "rb")
        self._number = 0
        self._buffer = b""
        self._session = ""
        self.console: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> Any:
        """Send a command and return its result; events on the way are looked at."""
        self._number += 1
        told: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            told["sessionId"] = self._session
        self._write.write(json.dumps(told).encode() + b"\0")
        self._write.flush()
        while True:
            event = self._next()
            if event.get("id") == self._number:
                assert "error" not in event, event
                return event["result"]
            self._hear(event)

    def _next(self) -> Any:
        while b"\0" not in self._buffer:
            data = os.read(self._read.fileno(), 1 << 20)
            assert data, "the browser ended"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _hear(self, event: Any) -> None:
        method, told = event.get("method", ""), event.get("params", {})
        if method == "Runtime.exceptionThrown" or method == "Log.entryAdded":
            self.console.append(json.dumps(told))
        if method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.console.append(json.dumps(told))

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, script: str, seconds: float = 60) -> Any:
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.evaluate(script)):
            assert time.monotonic() < deadline, (script, self.evaluate("document.body.innerText"))
            time.sleep(0.05)
        return value

    def open(self, url: str) -> None:
        """Go to a page and wait until it is there."""
        self.send("Page.navigate", url=url)
        self.wait_for(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")

    def type(self, text: str) -> None:
        """Type a text where the focus is."""
        self.send("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press a key where the focus is."""
        codes = {"Enter": 13, "Tab": 9, "ArrowRight": 39, " ": 32}
        told = {"key": key, "code": "Space" if key == " " else key}
        told["text"] = {"Enter": "\r", " ": " "}.get(key, "")
        code = codes[key]
        self.send("Input.dispatchKeyEvent", type="keyDown", windowsVirtualKeyCode=code, **told)
        self.send("Input.dispatchKeyEvent", type="keyUp", windowsVirtualKeyCode=code, **told)

    def resize(self, width: int, height: int, is_phone: bool) -> None:
        """Let the page think that the screen has this size."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=is_phone,
        )

    def screenshot(self, path: Path) -> None:
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """End the browser."""
        self._process.kill()
        self._process.wait()
        self._write.close()
        self._read.close()
