"""The zip archive around torch's pickle: which entries it has and where their bytes lie in the file.

Source: torch 2.13.0, torch/serialization.py and caffe2/serialize (entries stored, little-endian, aligned); the zip format as
in PKWARE's APPNOTE 6.3.10 (local file header: 30 bytes, then name and extra field, then the data).
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

from porting.errors import CheckpointError, UnsupportedModel

from .files import open_to_read, read_exactly

MAX_DIRECTORY_BYTES = 16 << 20  # about 200,000 entries
MAX_PICKLE_BYTES = 64 << 20
LOCAL_HEADER = struct.Struct("<4s5H3L2H")  # signature, 5 fields, crc and sizes, length of name, length of extra
LOCAL_SIGNATURE = b"PK\x03\x04"
ENCRYPTED = 0x1
PICKLE_START = b"\x80"  # the operation PROTO: torch's format before 1.6 begins so
RESAVE = "load it with torch where you trust the file, and save the state dict as safetensors"


class Entry(NamedTuple):
    """Bytes of one entry: absolute offset in the file, and how many."""

    offset: int
    nbytes: int


class TorchZip:
    """The entries of a torch archive.

    root:    the folder name inside the archive that torch put before everything
    entries: full name -> Entry; all lie uncompressed inside the file and none overlaps another
    raises:  CheckpointError (unreadable, damaged), UnsupportedModel (TorchScript, big-endian)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        fd, size = open_to_read(path)
        with open(fd, "rb") as file:
            self._require_zip(fd, size)
            infos, directory_start = self._directory(file, size)
            self._refuse_torchscript([info.filename for info in infos])
            self.entries = self._entries(fd, infos, directory_start)
            self.root = self._root()
            self._require_little_endian()

    def pickle_bytes(self) -> bytes:
        """data.pkl, whose size was checked."""
        return self._read(self.entries[f"{self.root}/data.pkl"])

    def _read(self, entry: Entry) -> bytes:
        fd, _ = open_to_read(self.path)
        try:
            return read_exactly(fd, entry.offset, entry.nbytes, self.path).tobytes()
        finally:
            os.close(fd)

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path.name} {what}", where=str(self.path), next="the file is damaged or no torch checkpoint; fetch it again"
        )

    def _require_zip(self, fd: int, size: int) -> None:
        start = read_exactly(fd, 0, min(4, size), self.path).tobytes()
        if start != LOCAL_SIGNATURE:
            raise self._damaged(f"is not a torch checkpoint: expected a zip archive that begins with PK\\3\\4, got {start!r}")

    def _directory(self, file: io.BufferedReader, size: int) -> tuple[list[zipfile.ZipInfo], int]:
        """(entries, where the central directory starts)."""
        try:
            with zipfile.ZipFile(_BoundedFile(file, size)) as archive:  # type: ignore[arg-type]
                return archive.infolist(), archive.start_dir
        except (zipfile.BadZipFile, NotImplementedError, struct.error, EOFError, ValueError, OverflowError, OSError) as error:
            raise self._damaged(f"has a damaged zip directory: {str(error)[:200]}") from error

    def _refuse_torchscript(self, names: list[str]) -> None:
        scripted = [n for n in names if n.endswith("/constants.pkl") or n.partition("/")[2].startswith("code/")]
        if scripted:
            raise UnsupportedModel(
                f"{self.path.name} is a TorchScript archive, which holds code; not covered (it has {scripted[0][:80]!r})",
                where=str(self.path),
                next=RESAVE,
            )

    def _entries(self, fd: int, infos: list[zipfile.ZipInfo], directory_start: int) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        end_before = 0
        for info in sorted(infos, key=lambda i: i.header_offset):
            name = info.filename
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & ENCRYPTED or info.compress_size != info.file_size:
                raise self._damaged(f"has the entry {name[:80]!r} compressed or encrypted, which torch does not write")
            if name in entries:
                raise self._damaged(f"has the entry {name[:80]!r} twice")
            entry = self._entry(fd, info, directory_start)
            if info.header_offset < end_before:
                raise self._damaged(f"has the entry {name[:80]!r} overlapping the one before it")
            end_before = entry.offset + entry.nbytes
            entries[name] = entry
        return entries

    def _entry(self, fd: int, info: zipfile.ZipInfo, directory_start: int) -> Entry:
        """Where the entry's bytes lie, by its local header, which must agree with the directory."""
        shown = repr(info.filename[:80])
        if not 0 <= info.header_offset <= directory_start - LOCAL_HEADER.size:
            raise self._damaged(f"has the entry {shown} at byte {info.header_offset}, outside the file's data")
        header = LOCAL_HEADER.unpack(read_exactly(fd, info.header_offset, LOCAL_HEADER.size, self.path).tobytes())
        signature, name_bytes, extra_bytes = header[0], header[-2], header[-1]
        name_start = info.header_offset + LOCAL_HEADER.size
        offset = name_start + name_bytes + extra_bytes
        if signature != LOCAL_SIGNATURE or offset + info.file_size > directory_start:
            raise self._damaged(
                f"has the entry {shown} of {info.file_size} bytes at byte {info.header_offset}, where there is no such entry"
            )
        name = read_exactly(fd, name_start, name_bytes, self.path).tobytes()
        if name != info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437", "replace"):
            raise self._damaged(f"has the entry {shown}, which calls itself {name[:80]!r}")
        return Entry(offset, info.file_size)

    def _root(self) -> str:
        """The folder that holds data.pkl."""
        roots = [name.removesuffix("/data.pkl") for name in self.entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(roots) != 1:
            got = ", ".join(repr(n[:40]) for n in list(self.entries)[:5]) or "no entry"
            raise self._damaged(f"is not a torch checkpoint: expected one NAME/data.pkl in the archive, got {got}")
        nbytes = self.entries[f"{roots[0]}/data.pkl"].nbytes
        if nbytes > MAX_PICKLE_BYTES:
            raise self._damaged(f"has a data.pkl of {nbytes} bytes; at most {MAX_PICKLE_BYTES} are taken")
        return roots[0]

    def _require_little_endian(self) -> None:
        entry = self.entries.get(f"{self.root}/byteorder")  # absent before torch 2.1
        order = self._read(entry) if entry and entry.nbytes <= 16 else b"" if entry else b"little"
        if order != b"little":
            raise UnsupportedModel(
                f"{self.path.name} has the wrong byte order: expected 'little', got {order.decode('ascii', 'replace')!r}",
                where=str(self.path),
                next=RESAVE,
            )


def names_in_zip(path: Path) -> list[str]:
    """The names of a zip archive's entries, none of which is read. raises: CheckpointError when it cannot be read or is damaged"""
    fd, size = open_to_read(path)
    with open(fd, "rb") as file:
        try:
            with zipfile.ZipFile(_BoundedFile(file, size)) as archive:  # type: ignore[arg-type]
                return archive.namelist()
        except (zipfile.BadZipFile, NotImplementedError, struct.error, EOFError, ValueError, OverflowError, OSError) as error:
            raise CheckpointError(f"{path.name} has a damaged zip directory: {str(error)[:200]}", where=str(path)) from error


class _BoundedFile:
    """A file whose reads are bounded: zipfile takes the size of its directory from the file and reads that much at once."""

    def __init__(self, file: io.BufferedReader, size: int) -> None:
        self.file = file
        self.size = size
        self.seek = file.seek
        self.tell = file.tell
        self.seekable = file.seekable

    def read(self, nbytes: int = -1) -> bytes:
        """At most `nbytes` bytes.

        raises: ValueError beyond the bound
        """
        wanted = nbytes if nbytes >= 0 else self.size - self.file.tell()
        if wanted > MAX_DIRECTORY_BYTES:
            raise ValueError(f"its directory claims {wanted} bytes; at most {MAX_DIRECTORY_BYTES} are taken")
        return self.file.read(wanted)
