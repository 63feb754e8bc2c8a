"""A real browser to open reports in, and evaluations to report on."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from src.config import compose_config
from src.evaluate import evaluate

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Browser:
    """Chromium without a window, driven by the DevTools protocol over two pipes."""

    def __init__(self, executable: str, profile: Path) -> None:
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # The browser wants descriptors 3 and 4, so the shell must find ours elsewhere.
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser, from_browser)]
        for end in (to_browser, from_browser):
            os.close(end)
        self._process = subprocess.Popen(
            [
                "sh",
                "-c",
                f'exec "$0" "$@" 3</dev/fd/{theirs[0]} 4>/dev/fd/{theirs[1]}',
                executable,
                *OPTIONS,
                f"--user-data-dir={profile}",
            ],
            pass_fds=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in theirs:
            os.close(end)
        self._buffer = b""
        self._calls = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Result of a command; events that arrive before it are kept."""
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == message["id"]:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, event: str) -> None:
        while not any(one.get("method") == event for one in self.events):
            self.events.append(self._receive())

    def open(self, page: Path, width: int, height: int = 800, *, dark: bool = False) -> Page:
        """Open a file in a tab of its own; narrow ones are phones."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.events.clear()
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable", session)
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            session,
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", session, features=scheme)
        self.call("Page.navigate", session, url=page.resolve().as_uri())
        self.wait_for("Page.loadEventFired")
        return Page(self, session)

    def close(self) -> None:
        self.call("Browser.close")
        self._process.wait(60)
        os.close(self._write)
        os.close(self._read)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._read, 2**16)
            if not chunk:
                raise RuntimeError("the browser ended")
            self._buffer += chunk
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)


class Page:
    """An open page."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page; of a promise, what it becomes."""
        answer = self._browser.call(
            "Runtime.evaluate", self._session, expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    @property
    def requests(self) -> list[str]:
        """Addresses that the page has asked for, without what it carries itself."""
        sent = [
            event["params"]["request"]["url"]
            for event in self._browser.events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in sent if not url.startswith("data:")]

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings of the browser's console."""
        entries = [
            event["params"]["entry"] for event in self._browser.events if event["method"] == "Log.entryAdded"
        ]
        return [entry["text"] for entry in entries if entry["level"] in ("warning", "error")]

    def screenshot(self, path: Path) -> np.ndarray:
        """The whole page as an RGB picture, also written to a file."""
        content = self._browser.call("Page.captureScreenshot", self._session, captureBeyondViewport=True)[
            "data"
        ]
        path.write_bytes(base64.b64decode(content))
        return np.array(Image.open(path).convert("RGB"))


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser with a fresh profile for all tests."""
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    executable = next((name for name in found if name), None)
    if executable is None:
        pytest.skip("no Chromium on this machine")
    browser = Browser(executable, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def predict(folder: Path, labels: Path, shift: int) -> Path:
    """Label maps of a made-up program: the labels smoothed and moved to the right, nothing ignored."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(labels.glob("*.png")):
        label = np.array(Image.open(path))
        label[label == 255] = 0
        Image.fromarray(np.roll(cv2.medianBlur(label, 3), shift, axis=1)).save(folder / path.name)
    return folder


@pytest.fixture(scope="session")
def scored(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``good`` and ``bad`` evaluations for the scenes, the first compared with the second."""
    root = tmp_path_factory.mktemp("scored")
    compared: list[str] = []
    for name, shift in (("bad", 4), ("good", 1)):
        predictions = predict(root / name / "predictions", scenes / "annotations" / "val", shift)
        evaluate(
            compose_config(
                "evaluate",
                [
                    f"predictions={predictions}",
                    "data=mass13k",
                    f"data.root={scenes}",
                    f"run_dir={root / name}",
                    "bootstrap.samples=200",
                    "report.worst=2",
                    "report.best=1",
                    *compared,
                ],
            )
        )
        compared = [f"compare={root / name / 'scores.json'}"]
    return root
