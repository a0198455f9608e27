"""Says in a file what a process is doing, and ends the process when that takes too long.

A kernel that hangs keeps the host inside the driver, where no exception and no signal handler of Python's reaches it.
`faulthandler` keeps a thread outside of Python that writes down where the host stood and ends the process. Whoever is
started after it finds the file, writes that work down as failed, and goes on behind it.
"""

import faulthandler
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

MOST_S = 45.0  # of one check or timing, its compilation included; the longest known take two or three seconds


class Watch:
    """Watches over pieces of work by name.

    Parameters
    ----------
    path : Path
        Names the piece that is being worked on; is there only while one is.
    most_s : float
        After which the process is ended [s].
    """

    def __init__(self, path: Path, most_s: float = MOST_S) -> None:
        self._path, self._trace_path, self._most_s = path, path.with_suffix(".hung"), most_s

    def left(self) -> tuple[str, str] | None:
        """What a process before this one began and did not end, and how it was ended; asked once."""
        if not self._path.is_file():
            return None
        name = self._path.read_text(encoding="utf-8")
        has_hung = self._trace_path.is_file() and self._trace_path.stat().st_size > 0
        self._path.unlink()
        self._trace_path.unlink(missing_ok=True)
        return name, f"hung for {self._most_s:g} s" if has_hung else ""

    @contextmanager
    def over(self, name: str) -> Iterator[None]:
        """While this piece of work is done."""
        self._path.write_text(name, encoding="utf-8")
        with self._trace_path.open("w", encoding="utf-8") as trace:
            faulthandler.dump_traceback_later(self._most_s, exit=True, file=trace)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
                self._path.unlink(missing_ok=True)
        self._trace_path.unlink(missing_ok=True)


def end_in_order() -> None:
    """Let a request to terminate, as ``timeout`` sends it, unwind the stack: what is being done was not at fault."""

    def stop(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
