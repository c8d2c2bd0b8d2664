r"""The bytes and the lines of a file, compressed or not.

`lines(Path("rows.txt.gz"))` yields `(1, "Once.\n")`, `(2, "Twice.\n")`. Nothing here knows JSON or
CSV. A file that is not the text that its name promises (UTF-16, a zip archive, damaged gzip) is
refused with the reason. No more than one line is held in memory.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from jaxft.errors import DataError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

_UTF8_REMEDY = "Save the file as UTF-8."
_COMPRESSED_REMEDY = "Unpack it, or give it the ending .gz or .zst if it is of that kind."

# The first bytes of files of other kinds, the kind, and what to do about it.
_SIGNATURES = (
    (b"PAR1", "Parquet", "Give it the ending .parquet."),
    (b"ARROW1", "Arrow", "Give it the ending .arrow."),
    (b"\x1f\x8b", "compressed with gzip", _COMPRESSED_REMEDY),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", _COMPRESSED_REMEDY),
    (b"BZh", "compressed with bzip2", _COMPRESSED_REMEDY),
    (b"\xfd7zXZ", "compressed with xz", _COMPRESSED_REMEDY),
    (b"PK\x03\x04", "a zip archive, or an Excel file", "Unpack it, or export it as CSV in UTF-8."),
    (b"\xd0\xcf\x11\xe0", "an Excel or Word file", "Export it as CSV in UTF-8."),
    (b"%PDF-", "PDF", "Export its text to a .txt file."),
    (b"version https://git-lfs", "a pointer of Git LFS", "Run `git lfs pull` where it came from."),
    (b"\xff\xfe\x00\x00", "UTF-32 text", _UTF8_REMEDY),
    (b"\xff\xfe", "UTF-16 text", _UTF8_REMEDY),
    (b"\xfe\xff", "UTF-16 text", _UTF8_REMEDY),
)
_START_BYTES = 4096

_HANGUL = frozenset(map(chr, range(ord("가"), ord("힣") + 1)))
_WESTERN = frozenset(
    letter
    for letter in bytes(range(0x80, 0x100)).decode("cp1252", "ignore")
    if letter.isalpha() or unicodedata.category(letter) in ("Pi", "Pf", "Pd")  # quotes and dashes
)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file, and decompress it if its name ends in .gz or .zst.

    Raises:
        DataError: The file does not have the compression that its name says, or is damaged.
        OSError: The file cannot be read.
    """
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression is None:
        with path.open("rb") as file:
            yield file
        return
    import pyarrow

    path.open("rb").close()  # pyarrow's own error would lack the reason
    try:
        with pyarrow.input_stream(str(path), compression=compression) as stream:
            yield cast(BinaryIO, io.BufferedReader(stream))
    except OSError as error:
        if error.errno is not None:
            raise
        raise DataError(
            f"{path}: not {compression}, or damaged ({str(error).partition(chr(10))[0]}).",
            "Copy it again from where it came, or check its ending.",
        ) from error


def check_kind(path: Path, own: tuple[str, ...] = ()) -> None:
    """Raise if the first bytes of a file show another kind than its name.

    Args:
        path: The file.
        own: The kinds that its name promises, such as `("Parquet",)`; none for text.

    Raises:
        DataError: The file is of another kind.
    """
    with opened(path) as file:
        start = file.read(_START_BYTES)
    for signature, kind, remedy in _SIGNATURES:
        if start.startswith(signature) and kind not in own:
            raise DataError(f"{path} is {kind}, and not what its name says.", remedy)
    if not own and start.count(0) > len(start) // 4:
        raise DataError(
            f"{path} is not UTF-8: every other of its first bytes is zero, as in UTF-16.",
            _UTF8_REMEDY,
        )


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines with their numbers, from 1, and with their line endings.

    Lines end at line feeds only: `str.splitlines` would also cut at U+2028 and similar characters,
    which JSON allows inside strings. A byte order mark at the start is removed.

    Raises:
        DataError: A line is not UTF-8, or the file is damaged.
        OSError: The file cannot be read.
    """
    with opened(path) as file:
        for number, data in enumerate(file, start=1):
            if number == 1:
                data = data.removeprefix(codecs.BOM_UTF8)
            try:
                text = data.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(data, error.start, f"{path}:{number}") from error
            yield number, text


def pieces(path: Path, num_bytes: int = 1 << 16) -> Iterator[str]:
    """Yield the text of a file in pieces of limited size, however long its lines are.

    Raises:
        DataError: The file is not UTF-8, or is damaged.
        OSError: It cannot be read.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        with opened(path) as file:
            while data := file.read(num_bytes):
                yield decoder.decode(data)
            yield decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        for _ in lines(path):  # raises an error with the number of the line
            pass
        raise


def _not_utf8(data: bytes, position: int, place: str) -> DataError:
    """Return the error for a line that is not UTF-8, with a guess of its encoding."""
    guess = _likely_encoding(data)
    hint = (
        f" It looks like {guess}: `iconv -f {guess} -t UTF-8 OLD > NEW` does it." if guess else ""
    )
    return DataError(
        f"{place}: not UTF-8: byte 0x{data[position]:02x} at position {position}.",
        f"{_UTF8_REMEDY}{hint}",
    )


def _likely_encoding(data: bytes) -> str:
    """Return an encoding in which a line is Korean or Western text; "" if there is none."""
    for name, letters in (("CP949", _HANGUL), ("CP1252", _WESTERN)):
        with contextlib.suppress(UnicodeDecodeError):
            if letters.issuperset(letter for letter in data.decode(name) if ord(letter) > 127):
                return name
    return ""
