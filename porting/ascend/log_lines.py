"""Lines of a vendor's log: of any size and encoding, in fixed memory."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from typing import BinaryIO

LONGEST = 1 << 16  # bytes; a longer line comes in pieces under one number
SEAM = 256  # bytes before the end of a piece that may move to the next, so that no word is cut
_BETWEEN_WORDS = re.compile(rb"[\s,;:()\[\]{}\"'=|]")
_BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def numbered_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(number from 1, bytes without the line's end), at most LONGEST + SEAM bytes at a time. UTF-16 with a mark comes out as UTF-8."""
    number, carried = 1, b""
    for piece in _pieces(stream):
        whole = carried + piece
        carried = b""
        if piece.endswith(b"\n"):
            yield number, whole.rstrip(b"\r\n")
            number += 1
        elif len(piece) >= LONGEST:
            seams = list(_BETWEEN_WORDS.finditer(whole, len(whole) - SEAM))
            cut = seams[-1].end() if seams else len(whole)
            carried = whole[cut:]
            yield number, whole[:cut]
        else:
            carried = whole
    if carried:
        yield number, carried


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    """Lines with their ends, long ones in pieces of LONGEST bytes or a little more."""
    buffered = io.BufferedReader(stream)  # type: ignore[type-var]  # anything that reads into a buffer will do
    try:
        if buffered.peek(2)[:2] in _BOMS:
            text = io.TextIOWrapper(buffered, encoding="utf-16", errors="replace", newline="\n")
            try:
                yield from (line.encode("utf-8", "replace") for line in iter(lambda: text.readline(LONGEST), ""))
            finally:
                text.detach()
        else:
            yield from iter(lambda: buffered.readline(LONGEST), b"")
    finally:
        buffered.detach()  # the stream is its opener's to close


def decoded(line: bytes) -> tuple[str, str]:
    """(text, encoding): UTF-8, else GBK (what CANN's Chinese tools write on some systems), else UTF-8 with what is wrong as escapes."""
    for encoding in ("utf-8", "gbk"):
        try:
            return line.decode(encoding), encoding
        except UnicodeDecodeError:
            continue
    return line.decode("utf-8", "backslashreplace"), "unknown"
