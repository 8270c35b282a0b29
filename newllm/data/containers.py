"""The bytes and the text of a file, whatever it is packed in and however its text is encoded.

A file is recognised by its first bytes, not by its name: browsers, mail programs and people change
names.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import errno
import gzip
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from newllm.errors import UserError

if TYPE_CHECKING:
    import pyarrow

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst", ".zstd")
"""How the names of compressed files end."""

_GZIP, _BZIP2, _XZ, _ZSTANDARD = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"

DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError)
"""What reading a damaged container raises (`OSError` with a number: the disk, not the content)."""

_DAMAGED_ARCHIVE = (ValueError, OverflowError, EOFError, struct.error, OSError)
"""What `zipfile` raises besides of numbers and names that are none; `OSError` of a place before the
file's start."""

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_WITHOUT_MARK = {
    (True, False, False, False): "utf-32-le",
    (False, False, False, True): "utf-32-be",
    (True, False, True, False): "utf-16-le",
    (False, True, False, True): "utf-16-be",
}
"""Which of a text's first four bytes are not zero, where it begins with two ASCII characters."""


NOT_UTF8 = (
    "not UTF-8 text; save it as UTF-8 (Excel: 'CSV UTF-8'; or iconv -f CP1252 -t UTF-8, "
    "-f CP932 of Shift JIS)"
)

NOT_FETCHED = "Git LFS left a pointer in place of the file; run git lfs pull in its folder"


@dataclass(frozen=True)
class RowFile:
    """A file, or a part of one, that rows are read from."""

    path: Path
    member: str = ""
    """The file inside, where `path` is a zip archive."""
    part: str = ""
    """The field that holds the rows, where the content is one JSON object with several splits."""

    def __str__(self) -> str:
        inside = f"/{self.member}" if self.member else ""
        return f"{self.path}{inside}" + (f" [{self.part}]" if self.part else "")

    @property
    def name(self) -> str:
        """Name of the file that holds the rows, without folders."""
        return self.member.rpartition("/")[2] or self.path.name


@contextlib.contextmanager
def open_bytes(file: RowFile) -> Iterator[io.BufferedReader]:
    """The bytes of a file, unpacked.

    Raises:
        UserError: an archive that is encrypted.
        any of `DAMAGED`: here, or while it is read.
    """
    with contextlib.ExitStack() as opened:
        stream: IO[bytes] = opened.enter_context(file.path.open("rb"))
        if file.member:
            try:
                archive = opened.enter_context(zipfile.ZipFile(stream))
                stream = opened.enter_context(archive.open(file.member))
            except NotImplementedError:  # a RuntimeError, too
                raise
            except RuntimeError:
                raise UserError(f"{file}: encrypted; unpack it and give the folder") from None
            except KeyError:
                raise zipfile.BadZipFile("no such file in the archive") from None
            except _DAMAGED_ARCHIVE as error:
                raise zipfile.BadZipFile(_reason(error)) from None
        yield opened.enter_context(_unpacked(stream))


def _unpacked(stream: Any) -> io.BufferedReader:
    head = stream.peek(6)
    if head.startswith(_GZIP):
        return io.BufferedReader(gzip.GzipFile(fileobj=stream))
    if head.startswith(_BZIP2):
        return io.BufferedReader(bz2.BZ2File(stream))
    if head.startswith(_XZ):
        return io.BufferedReader(lzma.LZMAFile(stream))
    if head.startswith(_ZSTANDARD):
        return io.BufferedReader(_zstandard(stream))  # type: ignore[type-var]
    return stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream)


def _zstandard(stream: IO[bytes]) -> pyarrow.NativeFile:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, mode="r"), "zstd")


@contextlib.contextmanager
def open_text(file: RowFile) -> Iterator[io.TextIOWrapper]:
    r"""The text of a file, all line ends as `\n`; UTF-8, UTF-16 or UTF-32, with a mark or without.

    A byte that is no UTF-8 becomes a lone surrogate (`badly_encoded`).
    """
    with open_bytes(file) as stream:
        encoding = text_encoding(stream.peek(4))
        errors = "surrogateescape" if encoding.startswith("utf-8") else "replace"
        with io.TextIOWrapper(stream, encoding, errors) as text:
            yield text


def text_encoding(head: bytes) -> str:
    """The encoding of a text that begins so, by its mark or its zeros; else UTF-8."""
    for mark, name in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return name
    return _WITHOUT_MARK.get(tuple(byte != 0 for byte in head[:4]), "utf-8")  # type: ignore[arg-type]


def badly_encoded(text: str) -> bool:
    """Whether a text that `open_text` read had bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return "\udc80" <= text[error.start] <= "\udcff"
    return False


def is_pointer(stream: Any) -> bool:
    """Whether Git LFS left this in place of the real file; `stream` stands at its beginning."""
    return stream.peek(64).startswith(b"version https://git-lfs")


def members(path: Path) -> list[str] | None:
    """Names of the files in a zip archive; None where it is none.

    Raises:
        UserError: damaged.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(4) not in (b"PK\x03\x04", b"PK\x05\x06"):
                return None
            with zipfile.ZipFile(stream) as archive:
                names = [entry.filename for entry in archive.infolist()]
                return [name for name in names if name and not name.endswith("/")]
    except (zipfile.BadZipFile, NotImplementedError, *_DAMAGED_ARCHIVE) as error:
        raise UserError(f"{path}: a damaged zip archive ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    """What is wrong with an archive; an error of the disk is raised again."""
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        raise error
    return str(error)
