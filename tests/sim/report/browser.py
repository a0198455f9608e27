"""A headless Chromium, driven over its DevTools pipe with nothing but the standard library."""

import json
import os
import shutil
import subprocess
import time
from base64 import b64decode
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGE = find_spec("axe_core_python")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-extensions",
    "--disable-default-apps",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no name resolves: offline
    "--remote-debugging-pipe",
)
DEADLINE_S = 60.0
KEYS = {"Tab": 9, "ArrowRight": 39}


class Browser:
    """One page in a fresh profile without network; notes console messages, errors and requests."""

    def __init__(self, profile: Path, width: int = 1200, height: int = 900) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        command = [
            str(CHROMIUM),
            *FLAGS,
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            "about:blank",
        ]

        def hand_over() -> None:  # Chromium reads commands from descriptor 3 and answers on 4
            read, write = os.dup(to_read), os.dup(to_write)
            os.dup2(read, 3)
            os.dup2(write, 4)

        self._process = subprocess.Popen(
            command,
            preexec_fn=hand_over,
            pass_fds=(3, 4, to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer = b""
        self._n_sent = 0
        self._session: str | None = None
        self.problems: list[str] = []  # console warnings and errors, exceptions
        self.requests: list[str] = []  # addresses asked for, but for the page's own
        target = next(t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None
        self.send("Browser.close")  # writes its profile to the end, so that the folder can be removed
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def send(self, method: str, **params: Any) -> Any:
        """Give a command and wait for its answer."""
        self._n_sent += 1
        message = {"id": self._n_sent, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._n_sent:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def open(self, path: Path, scheme: str = "light") -> None:
        """Open a file in light or dark and wait until its charts are drawn."""
        self.set_scheme(scheme)
        self.send("Page.navigate", url=path.resolve().as_uri())
        self.wait_for("document.documentElement?.dataset.drawn !== undefined")

    def set_scheme(self, scheme: str) -> None:
        """Prefer ``light`` or ``dark``."""
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Until a JavaScript condition holds."""
        deadline = time.monotonic() + DEADLINE_S
        while not self.evaluate(condition):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{condition}; {self.problems}")
            time.sleep(0.05)

    def n_drawn(self) -> int:
        """How many charts of the page show axes and data."""
        return int(
            self.evaluate(
                "[...document.querySelectorAll('.plot')].filter((chart) =>"
                " chart.querySelector('.cartesianlayer') && chart.querySelector('.trace, .points, .hm')).length"
            )
        )

    def size(self, width: int, height: int = 900) -> None:
        """Make the window so large."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def axe(self) -> list[str]:
        """What axe-core finds wrong with the page: rule, what is wrong, where."""
        if PACKAGE is None or PACKAGE.origin is None:
            raise RuntimeError("no axe-core-python: install the extra dev")
        self.evaluate(Path(PACKAGE.origin).with_name("axe.min.js").read_text(encoding="utf-8") + "; 0")
        # charts are drawn by Plotly, and each has its numbers in a table below
        said = "(n) => n.failureSummary.split('\\n').slice(1).join(' ') + ' ' + n.html.slice(0, 160)"
        found = self.evaluate(
            f"axe.run({{exclude: [['.plot']]}}, {{resultTypes: ['violations']}}).then((r) =>"
            f" r.violations.flatMap((v) => v.nodes.map((n) => v.id + ': ' + ({said})(n))))"
        )
        return list(found)

    def press(self, key: str) -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])

    def screenshot(self, path: Path, top: int = 0, height: int = 0) -> None:
        """The page as a PNG, or a strip of it."""
        clip = {"clip": {"x": 0, "y": top, "width": 1200, "height": height, "scale": 1}} if height else {}
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True, **clip)
        path.write_bytes(b64decode(shot["data"]))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._read, 1 << 16)
            if not chunk:
                raise RuntimeError("chromium ended unexpectedly")
            self._buffer += chunk
        raw, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(raw)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(
            ("file:", "data:", "blob:")
        ):
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"]["text"])
