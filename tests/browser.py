"""A headless Chromium over its debugging pipe: enough to load a page, ask it things, and press a key."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-dev-shm-usage", "--remote-debugging-pipe"),
    *("--disable-breakpad", "--disable-crash-reporter"),  # its handler would outlive the browser
)


class Browser:
    """One page. ``events`` holds what the browser said without being asked."""

    def __init__(self, to: Any, back: Any) -> None:
        self._to, self._back, self._count, self._session = to, back, 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> Any:
        """Sends a command of the DevTools protocol and waits for its answer."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while True:
            answer = json.loads(self._read())
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self.events.append(answer)

    def _read(self) -> bytes:
        found = bytearray()
        while (byte := self._back.read(1)) != b"\0":
            assert byte, "the browser ended"
            found += byte
        return bytes(found)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, path: Path, width: int, dark: bool) -> None:
        """Loads a file in a window ``width`` wide (a phone below 600), light or dark, without animations."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme, still])
        self.ask("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + 600  # a loaded machine is no failure
        while self.value("document.readyState") != "complete" or self.value("location.href") == "about:blank":
            assert time.monotonic() < deadline, "the page did not load"
            time.sleep(0.05)

    def press(self, key: str, code: int) -> None:
        """Presses and releases one key."""
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.ask("Input.dispatchKeyEvent", type="rawKeyDown", **common)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **common)

    def said(self, *methods: str) -> list[dict[str, Any]]:
        """The parameters of every event of those names so far."""
        self.value("1")  # whatever came before it has been read
        return [event["params"] for event in self.events if event.get("method") in methods]


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Starts Chromium; skips the test where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium here (Debian: apt install chromium)")
    theirs, to = os.pipe()
    back, answers = os.pipe()

    def child() -> None:  # Chromium reads from descriptor 3 and writes to 4
        first, second = os.dup(theirs), os.dup(answers)
        os.dup2(first, 3)
        os.dup2(second, 4)

    process = subprocess.Popen(
        [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        close_fds=False,
        preexec_fn=child,
        start_new_session=True,
    )
    os.close(theirs)
    os.close(answers)
    try:
        with open(to, "wb") as writer, open(back, "rb") as reader:
            yield Browser(writer, reader)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        end_handlers()


def end_handlers(patience: float = 10.0) -> None:
    """Waits for Chromium's crash handlers, which leave its process group and end a moment after it."""
    deadline = time.monotonic() + patience
    while handlers := [pid for pid in children() if b"crashpad_handler" in command(pid)]:
        if time.monotonic() > deadline:
            for pid in handlers:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def children() -> list[int]:
    """Processes whose parent this one is, orphans that came to it among them."""
    return [
        int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()
    ]


def command(pid: int) -> bytes:
    """The command line of a process; empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
