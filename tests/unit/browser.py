"""A real browser: headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable

PROGRAM = "chromium-headless-shell"
LIMIT = 30.0  # seconds for one answer


@contextmanager
def browser(directory: Path) -> Iterator[Browser]:
    """Run a browser with one page during the block; its files go into this directory."""
    orders, orders_end = os.pipe()
    answers_end, answers = os.pipe()
    # The protocol's pipes have to be 3 and 4: out of the way with what may be there
    theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (orders, answers)]
    command = [PROGRAM, "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
    command += [f"--user-data-dir={directory}", "about:blank"]
    with subprocess.Popen(
        command,
        pass_fds=(3, 4),
        preexec_fn=lambda: [os.dup2(end, 3 + number) for number, end in enumerate(theirs)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(directory)},
    ) as process:
        for end in (orders, answers, *theirs):
            os.close(end)
        try:
            yield Browser(orders_end, answers_end)
        finally:
            os.close(orders_end)  # which ends it, and its helpers before it
            try:
                process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
            os.close(answers_end)


class Browser:
    """One page. Each call returns when its command is done."""

    def __init__(self, orders: int, answers: int) -> None:
        self._orders, self._answers = orders, answers
        self._numbers = itertools.count(1)
        self._received = b""
        self._session = ""
        targets = self._call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        self._call("Page.enable")

    def look_like(self, width: int, height: int, scheme: str, phone: bool = False) -> None:
        """Be a window of this size, in CSS pixels, of somebody who prefers "light" or "dark"."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self._call("Emulation.setDeviceMetricsOverride", **metrics)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._call("Emulation.setEmulatedMedia", features=[feature])

    def open(self, path: Path) -> None:
        self._call("Page.navigate", url=path.as_uri())
        self._message(lambda message: message.get("method") == "Page.loadEventFired")

    def value(self, expression: str) -> Any:
        """Give what this JavaScript comes to."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """Write a PNG of the whole page, or of what the window shows."""
        answer = self._call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        session = {"sessionId": self._session} if self._session else {}
        order = {"id": number, "method": method, "params": parameters, **session}
        os.write(self._orders, json.dumps(order).encode() + b"\0")
        answer = self._message(lambda message: message.get("id") == number)
        assert "error" not in answer, answer
        return answer["result"]

    def _message(self, wanted: Callable[[Any], bool]) -> Any:
        """Wait for the message that is wanted; others are of no interest."""
        deadline = time.monotonic() + LIMIT
        while True:
            while b"\0" not in self._received:
                ready, _, _ = select.select([self._answers], [], [], deadline - time.monotonic())
                assert ready, "the browser does not answer"
                received = os.read(self._answers, 1 << 20)
                assert received, "the browser has ended"
                self._received += received
            text, _, self._received = self._received.partition(b"\0")
            message = json.loads(text)
            if wanted(message):
                return message
