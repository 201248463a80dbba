"""Broken downloads: what is wrong with a file that is empty, cut off, or another file under its name.

Reads only the structure of a file and executes nothing in it.  Does not load torch.
"""

from __future__ import annotations

import contextlib
import errno
import html
import io
import json
import math
import re
import shlex
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from rd3.errors import BadValue, DataCorrupt, DataMissing, RD3Error

_START = 4096
"""Bytes that are read to tell what a file is."""
_POINTERS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
_PAGES = ("<!doctype html", "<html", "<head", "<body", "<!--", "<script")
AGAIN = "download it again"


def require_whole(path: Path | str) -> None:
    """Raise :class:`DataMissing` for a file that is missing or cannot be opened, :class:`DataCorrupt` for a broken one.

    A file that passes may still be damaged in ways that only its own format can tell.
    """
    path = Path(path)
    # A distributed checkpoint, such as FSDP's, is a folder of files ending in .distcp with an index.
    if (path / ".metadata").is_file() or path.suffix == ".distcp":
        folder = path if path.is_dir() else path.parent
        joined = shlex.join([str(folder), f"{folder.resolve().name}.pt"])
        raise BadValue(
            f"{folder} is a distributed checkpoint in several files, expected one file.",
            f"join them: python -m torch.distributed.checkpoint.format_utils dcp_to_torch {joined}",
        )
    if path.is_dir():
        raise DataMissing(f"{path} is a folder, expected a file.", "give the path of a file in it")
    if not path.is_file():
        raise DataMissing(f"There is no file {path}.", "check the path")
    if error := broken_file(path):
        raise error


def broken_file(path: Path | str) -> RD3Error | None:
    """What is wrong with an existing file, as an error to raise or to print; None if nothing was found.

    Found are empty files, Git LFS and git-annex pointers, web pages, messages of servers in place of binary files,
    files of zero bytes, and ZIP archives (``.zip``, ``.npz``, ``.pt``), safetensors, ``.npy`` and Parquet files that
    end too early or whose content does not match their own checksums.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _broken(path, path.stat().st_size, file.read(_START), file)
    except OSError as error:
        return DataMissing(f"{path} cannot be read: {error.strerror or error}.", "check its permissions and its disk")


def _broken(path: Path, size: int, start: bytes, file: BinaryIO) -> RD3Error | None:
    if not size:
        return DataCorrupt(f"{path} is empty.", AGAIN)
    if start.startswith(_POINTERS):
        stated = re.search(rb"^size (\d+)", start, re.MULTILINE)
        of = f" of {int(stated[1]):,} bytes" if stated else ""
        return DataCorrupt(
            f"{path} is a Git LFS pointer, not the file{of} that it stands for.",
            "run `git lfs pull` in its repository, or download the file itself",
        )
    if not start.strip(b"\0"):
        return DataCorrupt(f"{path} starts with {len(start)} zero bytes: its download did not finish.", AGAIN)
    text = _text(start)
    if text is not None:
        return _not_binary(path, text)
    damage = _damage(path, size, start, file)
    return DataCorrupt(f"{path} is damaged: {damage}.", AGAIN) if damage else None


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises :class:`DataCorrupt` with the first line in another encoding, and OSError.
    """
    content = path.read_bytes()
    try:
        return io.StringIO(content.decode("utf-8-sig"), newline=None).read()
    except UnicodeDecodeError as error:
        wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
        line = content.count(b"\n", 0, error.start) + 1
        found = "it is UTF-16" if wide else f"byte 0x{content[error.start]:02x} in line {line} is of another encoding"
        codec, whose = ("UTF-16", "") if wide else ("WINDOWS-1252", "if that is Windows's, ")
        old, new = (shlex.quote(str(name)) for name in (path, path.with_name(f"utf8-{path.name}")))
        raise DataCorrupt(
            f"{path} is not UTF-8 text: {found}.", f"save it as UTF-8; {whose}iconv -f {codec} -t UTF-8 {old} > {new}"
        ) from None


def _text(start: bytes) -> str | None:
    """The beginning of a file that is plain text; None for a binary file."""
    codec = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    # The last character may have been cut, but not that of a file that was read whole.
    for end in range(len(start), len(start) - (4 if len(start) == _START else 1), -1):
        with contextlib.suppress(UnicodeDecodeError):
            found = start[:end].decode(codec)
            # Most pairs of random bytes are a printable character of UTF-16, so that must be mostly Latin to be text.
            not_latin = codec == "utf-16" and 2 * sum(letter > "\u024f" for letter in found) >= len(found)
            printable = all(letter.isprintable() or letter.isspace() for letter in found)
            return found if printable and not not_latin else None
    return None


_BINARY = (
    *(".pt", ".pth", ".tar", ".ckpt", ".bin", ".safetensors", ".npz", ".npy", ".parquet", ".zip", ".gz", ".tgz"),
    *(".h5", ".hdf5", ".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"),
)


def _not_binary(path: Path, text: str) -> RD3Error | None:
    """The error for a pointer, a web page, or text in place of a binary file; None for text that is none of them."""
    begin = text.strip().lower()
    if "/annex/objects/" in begin[:300] and len(text) < 1000:
        return DataCorrupt(f"{path} is a git-annex pointer, not the file that it stands for.", "run `git annex get`")
    if begin.startswith(_PAGES):
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
        named = f" titled {_line(html.unescape(title[1]))!r}" if title and title[1].strip() else ""
        return DataCorrupt(
            f"{path} is a web page (HTML){named}, not the file that its name promises.",
            "open its address in a browser and download the file itself, or remove this one",
        )
    if path.suffix.lower() in _BINARY:
        return DataCorrupt(f"{path} is text, not a {path.suffix} file; it begins {_line(text)!r}.", AGAIN)
    return None


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."


def _damage(path: Path, size: int, start: bytes, file: BinaryIO) -> str | None:
    """How the structure of a binary file contradicts its content, or None."""
    if start.startswith(b"PK"):
        return _zip_damage(path, size)
    if path.suffix.lower() == ".safetensors" or start[8:10] == b'{"':
        return _safetensors_damage(size, start, file)
    if start.startswith(b"\x93NUMPY"):
        return _npy_damage(size, file)
    if path.suffix.lower() in (".npy", ".npz", ".zip"):  # whose magic bytes were looked for above
        return f"it has {size:,} byte{'s' if size > 1 else ''} and does not start as a {path.suffix} file does"
    if path.suffix.lower() == ".parquet" or start.startswith(b"PAR1"):
        file.seek(max(size - 4, 0))
        whole = start.startswith(b"PAR1") and size >= 12 and file.read(4) == b"PAR1"
        return None if whole else f"it has {size:,} bytes and neither start nor end there as a Parquet file does"
    return None


def _zip_damage(path: Path, size: int) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.file_size]
            failed = [error for member in members if (error := _member_error(archive, member))]
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return f"it has {size:,} bytes and ends before the directory of its archive"
    except OSError as error:
        return f"the directory of its archive cannot be read ({_of_content(error)})"
    if not any(member.CRC for member in members):  # torch.save can be set to write no checksums, which are zero then
        failed = [error for error in failed if "Bad CRC-32" not in error]
    return f"its archive cannot be read ({failed[0]})" if failed else None


_LZMA = getattr(zipfile, "lzma", None)  # Python may be built without it
UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError),
    *([_LZMA.LZMAError] if _LZMA else []),
)
"""What Python's readers of archives raise for damaged ones, besides OSError."""


def _of_content(error: OSError) -> str:
    """The reason if a damaged archive is the cause (a place that no file has, a broken stream); else raises again."""
    if error.errno not in (errno.EINVAL, None):
        raise error
    return error.strerror or _line(str(error))


def _member_error(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> str:
    """Why a member cannot be read, by its checksum too; empty if it can."""
    try:
        with archive.open(member) as stream:
            while stream.read(1 << 20):
                pass
    except UNREADABLE as error:
        return _line(str(error)) or type(error).__name__
    except OSError as error:
        return _of_content(error)
    return ""


def _safetensors_damage(size: int, start: bytes, file: BinaryIO) -> str | None:
    length = int.from_bytes(start[:8], "little")
    if size < 8 or start[8:9] not in (b"{", b""):
        return "it has no safetensors header"
    if 8 + length > size:
        return f"it has {size:,} bytes and ends in its header"
    file.seek(8)
    try:
        header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return "its safetensors header cannot be read"
    return f"it has {size:,} bytes of {expected:,}" if size < expected else None


def _npy_damage(size: int, file: BinaryIO) -> str | None:
    from numpy.lib import format as npy

    file.seek(0)
    try:
        version = npy.read_magic(file)
        shape, _order, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
    except (ValueError, TypeError, SyntaxError, RecursionError, tokenize.TokenError) as error:
        return f"its header cannot be read ({_line(str(error))})"
    expected = file.tell() + dtype.itemsize * math.prod(shape)
    return f"it has {size:,} bytes of {expected:,}" if not dtype.hasobject and size < expected else None
