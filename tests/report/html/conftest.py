"""Debian's Chromium, without a window, driven over its own pipe: nothing else is installed."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
LOOK_EVERY_S = 0.02
LOOKS_MAX = 1500


class Browser:
    """One Chromium with one page in it. `problems` are what its console complained of."""

    def __init__(self, program: str) -> None:
        self.problems: list[str] = []
        self._folder = tempfile.TemporaryDirectory(
            prefix="septum-chromium-", ignore_cleanup_errors=True
        )
        to_read, self._to = os.pipe()
        from_read, from_write = os.pipe()
        flags = (
            "--headless=new --no-sandbox --disable-gpu --disable-background-networking"
            " --disable-dev-shm-usage --no-first-run --hide-scrollbars --disable-extensions"
            f" --remote-debugging-pipe --user-data-dir={self._folder.name} about:blank"
        )
        # Chromium reads its commands from 3 and answers on 4.
        command = f"exec {program} {flags} 3<&{to_read} 4>&{from_write}"
        self._process = subprocess.Popen(
            ["bash", "-c", command],
            pass_fds=(to_read, from_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(from_write)
        self._from = os.fdopen(from_read, "rb")
        self._buffer = b""
        self._number = 0
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            more = os.read(self._from.fileno(), 1 << 20)
            if not more:
                raise RuntimeError("Chromium ended")
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        method = message.get("method")
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.problems.append(json.dumps(params["args"]))
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("file:", "data:", "about:", "blob:")):
                self.problems.append(f"asks the network for {url}")
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(json.dumps(params["entry"]))

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """One command of the DevTools protocol; returns its result."""
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def js(self, expression: str) -> Any:
        """The value of an expression in the page, after its promise is kept."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def open(self, path: Path, fragment: str = "", *, width: int = 1400, height: int = 950) -> None:
        """Open a page of this machine and wait until it says that it is ready."""
        self.problems.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=f"{path.resolve().as_uri()}{fragment}")
        ready = (
            "document.documentElement?.dataset.ready === 'yes'"
            " || document.getElementById('notice')?.hidden === false"
        )
        for _ in range(LOOKS_MAX):
            if self.js(f"location.protocol === 'file:' && ({ready})"):
                return
            time.sleep(LOOK_EVERY_S)
        raise RuntimeError(f"{path} is never ready: {self.problems}")

    def key(self, key: str) -> None:
        """Press a key."""
        text = key if len(key) == 1 else ("\r" if key == "Enter" else "")
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def click(self, selector: str, dx: float = 0.5, dy: float = 0.5) -> None:
        """Click into what a selector finds, at a part of its width and height."""
        self.js(
            f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block:'center'}})"
        )
        box = self.js(
            f"(() => {{ const b = document.querySelector({json.dumps(selector)})"
            ".getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
        )
        x, y = box[0] + box[2] * dx, box[1] + box[3] * dy
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def dark(self, wanted: bool) -> None:
        """Prefer dark colours, or light ones."""
        value = "dark" if wanted else "light"
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": value}],
        )

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """A picture of what is seen, or of the whole page."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        """End it."""
        try:
            self._session = ""
            self.call("Browser.close")
        except (RuntimeError, OSError):
            self._process.kill()
        self._process.wait(20)
        self._from.close()
        os.close(self._to)
        self._folder.cleanup()


def find_chromium() -> str | None:
    """The path of a Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium: `apt-get install chromium` brings one; .ci/run does so as root")
    running = Browser(program)
    yield running
    running.close()
