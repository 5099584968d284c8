"""A real browser for the tests of pages, driven through Chromium's DevTools protocol."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websocket import create_connection

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Browser:
    """One tab of a headless Chromium, with the size and the colour scheme of any device."""

    def __init__(self, address: str) -> None:
        self.socket = create_connection(address, timeout=60, suppress_origin=True)
        self.numbers = itertools.count(1)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the result of one command of the protocol."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression in the page; a promise is awaited."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def emulate(self, width: int, height: int, *, dark: bool = False) -> None:
        """Give the window the size of a device in CSS pixels, and a colour scheme."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, page: Path, width: int, height: int, *, dark: bool = False) -> None:
        """Open a page of plots on such a device, and wait until it is drawn."""
        self.emulate(width, height, dark=dark)
        self.send("Page.navigate", url=page.resolve().as_uri())
        self.wait_until(f"location.href == {json.dumps(page.resolve().as_uri())}")
        self.wait_until_drawn(width, height, dark=dark)

    def wait_until_drawn(self, width: int, height: int, *, dark: bool = False) -> None:
        """Wait until the page's script has drawn the plot for this window and scheme."""
        scheme = "dark" if dark else "light"
        self.wait_until(f"document.body?.dataset.drawn == '{width} x {height} {scheme}'")

    def wait_until(self, condition: str) -> None:
        deadline = time.monotonic() + 30
        while not self.evaluate(condition):
            assert time.monotonic() < deadline, f"not so within 30 seconds: {condition}"
            time.sleep(0.05)

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as a PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next((path for path in map(shutil.which, NAMES) if path), None)
    if program is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    profile = tmp_path_factory.mktemp("chromium")
    # no sandbox: Chromium refuses one to root, and it opens only pages that the tests wrote
    command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    command += [f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            tab = _connected(profile / "DevToolsActivePort")
            yield tab
            tab.socket.close()
        finally:
            process.terminate()


def _connected(active: Path) -> Browser:
    """Connect to the tab of the browser that wrote its port into the file."""
    from urllib.request import urlopen

    deadline = time.monotonic() + 60
    while not (active.exists() and len(active.read_text().splitlines()) == 2):
        assert time.monotonic() < deadline, "Chromium did not start within a minute"
        time.sleep(0.05)
    port = active.read_text().splitlines()[0]
    with urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
        (tab,) = (target for target in json.load(answer) if target["type"] == "page")
    return Browser(tab["webSocketDebuggerUrl"])
