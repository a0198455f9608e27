"""Lines of a text file, plain or gzipped, read in blocks under caps."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

from sim.errors import TraceError

BLOCK_BYTES = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks
BINARY = {
    b"\x1f\x8b": "gzipped twice",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "Parquet",
    b"\x28\xb5\x2f\xfd": "packed with zstd",
    b"\xfd7zXZ": "packed with xz",
    b"BZh": "packed with bzip2",
    b"\x7fELF": "a program",
}
"""First bytes of what people have traces in, or take for one."""
MAX_ROWS = 50_000_000
MAX_TEXT_BYTES = 1 << 34
MAX_LINE_BYTES = 1 << 22
CHARS_PER_TOKEN = 4.0
"""Of English text: OpenAI, "What are tokens and how to count them?" ("1 token ~= 4 chars in English")."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a file is read: how much of it is believed, what its user says of it, and what a reader took for granted.

    Past a cap a file is refused, so a gzip bomb stops there.
    """

    rows: int = MAX_ROWS
    text_bytes: int = MAX_TEXT_BYTES  # decompressed
    line_bytes: int = MAX_LINE_BYTES
    time_unit: str | None = None  # of its times: s, ms, us or ns; None is the format's own
    hash_block_tokens: int | None = None  # of its hash_ids; None is the format's own, or the one size that fits
    chars_per_token: float = CHARS_PER_TOKEN  # of formats that hold texts
    notes: list[str] = field(default_factory=list)  # what was taken for granted


@dataclass(slots=True)
class Place:
    """Where in a file a reader is, for its error messages."""

    path: str
    line: int = 0

    def error(self, message: str, column: str | None = None) -> TraceError:
        """An error that says file, line and column."""
        where = f"{self.path}:{self.line}" if self.line else self.path
        return TraceError(f"{where}: {message}" if column is None else f"{where}: {column} {message}")


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """A file's bytes, decompressed if it is gzipped.

    Raises
    ------
    TraceError
        If the file is missing or damaged.
    """
    if not Path(path).exists():
        raise Place(path).error("no such file")
    if not Path(path).is_file():
        kind = "folder" if Path(path).is_dir() else "pipe" if Path(path).is_fifo() else "device"
        raise Place(path).error(f"is a {kind}, not a file")
    try:
        with open(path, "rb") as raw:
            is_gzip = raw.read(2) == GZIP_MAGIC
            raw.seek(0)
            yield cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if is_gzip else raw
    except (OSError, EOFError, zlib.error) as problem:
        raise Place(path).error(f"cannot be read: {problem}") from None


def head(path: str, n_bytes: int = 1 << 16) -> str:
    """The beginning of a file, damaged characters replaced: for recognising formats.

    Raises
    ------
    TraceError
        If it is empty, or plainly something else than text in UTF-8.
    """
    with opened(path) as file:
        begin = file.read(n_bytes)
    _refuse_bytes(begin, Place(path))
    return begin.removeprefix(BYTE_ORDER_MARK).decode(errors="replace")


def lines(path: str, reading: Reading) -> Iterator[list[str]]:
    """Blocks of consecutive lines without their ends; empty lines stay, so that numbers can be counted.

    Raises
    ------
    TraceError
        If the file is missing, damaged, not UTF-8, or beyond a cap.
    """
    with opened(path) as file:
        yield from _blocks(file, Place(path), reading)


def _refuse_bytes(begin: bytes, place: Place) -> None:
    """Say what a file is that begins as no text does."""
    if not begin:
        raise place.error("is empty")
    for magic, kind in BINARY.items():
        if begin.startswith(magic):
            raise place.error(f"is {kind}, not text or gzipped text")
    start = begin[:64]
    if start.startswith(UTF_16) or (len(start) > 3 and not (any(start[::2]) and any(start[1::2]))):
        raise place.error("is text in UTF-16, and must be in UTF-8")
    if b"\0" in begin:
        place.line = begin.count(b"\n", 0, begin.index(b"\0")) + 1
        raise place.error("is not text: there is a zero byte in this line")


def _blocks(file: IO[bytes], place: Place, reading: Reading) -> Iterator[list[str]]:
    rest = b""
    n_bytes = 0
    while block := file.read(BLOCK_BYTES):
        if n_bytes == 0:
            _refuse_bytes(block, place)
            block = block.removeprefix(BYTE_ORDER_MARK)
        n_bytes += len(block)
        if n_bytes > reading.text_bytes:
            raise place.error(f"more than {reading.text_bytes} bytes of text: refused")
        whole, newline, block_rest = block.rpartition(b"\n")
        if newline:
            complete = _decode(rest + whole, place, reading)
            yield complete
            place.line += len(complete)
            rest = block_rest
        else:
            rest += block_rest
        if len(rest) > reading.line_bytes:
            place.line += 1
            raise place.error(f"line longer than {reading.line_bytes} bytes: refused")
    if rest:
        yield _decode(rest, place, reading)


def _decode(block: bytes, place: Place, reading: Reading) -> list[str]:
    try:
        decoded = [line.removesuffix("\r") for line in block.decode().split("\n")]
    except UnicodeDecodeError as problem:
        place.line += block.count(b"\n", 0, problem.start) + 1
        raise place.error(f"not UTF-8 text: {problem.reason}") from None
    if len(block) > reading.line_bytes and max(map(len, decoded)) > reading.line_bytes:
        place.line += 1 + next(i for i, line in enumerate(decoded) if len(line) > reading.line_bytes)
        raise place.error(f"line longer than {reading.line_bytes} bytes: refused")
    return decoded
