"""Reads tar archives, and tars inside tars, as a stream from front to back. Nothing is written to disk.

Python's `tarfile` reads streams too, but not safely. If an archive is cut off between two members, or the next header
is damaged, `tarfile` ends without an error. It believes a header that claims 2^60 bytes, and skips that far. And it
raises the same error for a broken inner tar and a broken outer tar. Here these are two errors: `BrokenTarError` costs
one tar, such as one class. `BrokenArchiveError` says that the outermost stream is broken, and nothing more can be read.

Source of the format: POSIX.1-2001 pax, and the GNU manual, "Basic Tar Format".
"""

import bz2
import contextlib
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

from etils import epath

_BLOCK = 512
_SKIP_CHUNK = 1 << 20
_SPARSE_CONTINUES = 482  # offset in a header of the old GNU format
_WITHOUT_DATA = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
)
_EXTENSIONS = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME)  # headers before a file's own
_MAX_EXTENSION_BYTES = 64 << 10  # of such a header; real ones have a few hundred bytes
MAX_IMAGE_BYTES = 64 << 20  # ImageNet's largest JPEG has less than 20 MiB; more means a damaged header or an attack
_MAX_RATIO = 10  # of unpacked to packed bytes; JPEGs hardly compress, and tar adds a few per cent of zeros
_ALWAYS_READ = 1 << 30  # unpacked bytes that are read at any ratio
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*")  # the last two: TIFF
_OPENERS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZ": bz2.open,
    b"\xfd7": lzma.open,
}


class BrokenTarError(ValueError):
    """A tar is cut off, or its structure is damaged."""


class BrokenArchiveError(ValueError):
    """The outermost stream is cut off or cannot be decompressed. Nothing after this place can be read."""


@runtime_checkable
class Reader(Protocol):
    """A source of bytes. Only a file may return fewer than `count` bytes; a `Stream` and a `Section` never do."""

    def read(self, count: int) -> bytes: ...


class Stream:
    """The decompressed bytes of an archive.

    Args:
      raw: the source of the bytes.
      packed: returns how many compressed bytes were read so far; None if the archive is not compressed.

    Attributes:
      position: number of bytes read so far, after decompression.
    """

    def __init__(self, raw: Reader, packed: Callable[[], int] | None = None) -> None:
        self._raw = raw
        self._packed = packed
        self.position = 0

    def read(self, count: int) -> bytes:
        """Returns exactly `count` bytes.

        Raises:
          BrokenArchiveError: the stream has fewer bytes left, or `read_up_to` raises it.
        """
        data = self.read_up_to(count)
        if len(data) < count:
            raise BrokenArchiveError(f"it ends after {self.position:,} bytes (unpacked), before its end marker")
        return data

    def read_up_to(self, count: int) -> bytes:
        """Returns `count` bytes, or fewer at the end of the stream.

        Raises:
          BrokenArchiveError: the compressed data is damaged, or it is a decompression bomb. A bomb must not be read
            further, because the caller writes the data to disk.
        """
        try:
            data = self._raw.read(count)
            # A raw file may return fewer bytes than asked for. Only an empty result means its end.
            while len(data) < count and (more := self._raw.read(count - len(data))):
                data += more
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:  # bz2 raises OSError for damaged data
            raise BrokenArchiveError(f"reading fails after {self.position:,} bytes: {error}") from None
        self.position += len(data)
        if self._packed and self.position > max(_ALWAYS_READ, _MAX_RATIO * self._packed()):
            raise BrokenArchiveError(
                f"its first {self._packed():,} bytes unpack to {self.position:,}, a decompression bomb: images unpack "
                f"to at most {_MAX_RATIO} times as many"
            )
        return data

    def skip(self, count: int) -> None:
        """Passes over `count` bytes; an archive that is not compressed is not read for that."""
        if self._packed is None and isinstance(self._raw, io.IOBase) and self._raw.seekable():
            self._raw.seek(count, io.SEEK_CUR)
            self.position += count
        else:
            while count > 0:
                count -= len(self.read(min(count, _SKIP_CHUNK)))

    def drain(self) -> None:
        """Reads the stream to its end, where a compressed stream has a checksum."""
        while self.read_up_to(_SKIP_CHUNK):
            pass


class Member(NamedTuple):
    """One entry of a tar.

    Attributes:
      name: bytes that are not UTF-8 appear as \\xNN.
      size: in bytes.
      kind: "file", "directory", "link" or "special".
      data: can be read until the next member is requested.
    """

    name: str
    size: int
    kind: str
    data: "Section"


class Section:
    """The next `size` bytes of `source`, read when they are requested."""

    def __init__(self, source: Reader, size: int) -> None:
        self._source = source
        self.remaining = size

    def read(self, count: int) -> bytes:
        """Returns exactly `count` bytes.

        Raises:
          BrokenTarError: the section has fewer bytes left.
        """
        if count > self.remaining:
            raise BrokenTarError(f"it needs {count - self.remaining:,} bytes more than it has")
        self.remaining -= count
        return self._source.read(count)

    def skip(self, count: int) -> None:
        """Passes over `count` bytes, as far as possible without reading them.

        Raises:
          BrokenTarError: the section has fewer bytes left.
        """
        if isinstance(self._source, Stream | Section) and 0 < count <= self.remaining:
            self.remaining -= count
            self._source.skip(count)
            return
        while count > 0:
            count -= len(self.read(min(count, _SKIP_CHUNK)))


@contextlib.contextmanager
def open_stream(path: str) -> Iterator[Stream]:
    """Opens an archive for a `with` block. It may be compressed with gzip, bzip2 or xz; its first bytes tell which.

    Args:
      path: local or `gs://`.

    Raises:
      FileNotFoundError: there is no such file.
    """
    file = epath.Path(path)
    if not file.exists():
        raise FileNotFoundError(f"there is no archive at {path}")
    with file.open("rb") as probe:
        magic = probe.read(2)
    with file.open("rb") as raw:
        yield Stream(_OPENERS[magic](raw, "rb"), packed=raw.tell) if magic in _OPENERS else Stream(raw)


def read_tar(source: Reader, size: int | None = None) -> Iterator[Member]:
    """Yields the members of a tar. Each is yielded before the next is read.

    Args:
      source: of the tar's bytes.
      size: of the tar in bytes, for a tar inside a tar; None for the outermost stream.

    Raises:
      BrokenTarError: a header is damaged, or the tar ends without its end marker.
      BrokenArchiveError: the outermost stream raised it.
    """
    tar = Section(source, size if size is not None else 1 << 62)
    long_name: str | None = None
    long_size: int | None = None
    while True:
        header = tar.read(_BLOCK)
        if not any(header):  # the end marker: a block of zeros
            return
        info = _parse_header(header)
        if info.type in _EXTENSIONS:  # it gives the name or the size of the next member
            name, number = _read_extension(tar, info)
            long_name = long_name if name is None else name
            long_size = long_size if number is None else number
            continue
        member_size = info.size if long_size is None else long_size
        if info.type in _WITHOUT_DATA:
            member_size = 0  # the header of a hard link repeats the size of its target
        if member_size > tar.remaining:
            raise BrokenTarError(f"{info.name} claims {member_size:,} bytes where {tar.remaining:,} are left")
        section = Section(tar, member_size)
        # Global pax headers and long names of link targets belong to no file, and nothing here needs them.
        if info.type not in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            yield Member(long_name or info.name, member_size, _kind(info), section)
            long_name = long_size = None
        section.skip(section.remaining)
        tar.skip(-member_size % _BLOCK)


def _parse_header(header: bytes) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "backslashreplace")
    except tarfile.HeaderError as error:
        raise BrokenTarError(f"a header is damaged ({error})") from None
    if info.size < 0:
        raise BrokenTarError("a header gives a negative size")
    if info.type == tarfile.GNUTYPE_SPARSE and header[_SPARSE_CONTINUES]:
        raise BrokenTarError(f"{info.name} is a sparse file with a list of holes, which is not read here")
    return info


def _read_extension(tar: Section, info: tarfile.TarInfo) -> tuple[str | None, int | None]:
    """Reads the body of an extension. Returns the next member's name and size, each None if it is not given."""
    if info.size > _MAX_EXTENSION_BYTES:
        raise BrokenTarError(f"a name of {info.size:,} bytes")
    payload = tar.read(info.size)
    tar.skip(-info.size % _BLOCK)
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return payload.rstrip(b"\0").decode("utf-8", "backslashreplace"), None
    records = _pax_records(payload)
    return records.get("path"), _number(records["size"]) if "size" in records else None


def unsafe_name(name: str) -> bool:
    """Returns whether a name in a tar or a manifest leads out of its folder: it is absolute, or has a `..` in it."""
    return name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/")


def is_image(data: bytes) -> bool:
    """Returns whether `data` begins like an image in a format that the input pipeline decodes.

    The name does not matter: some files of ImageNet are named .JPEG and are PNGs, GIFs or BMPs. Damage after the first
    bytes is found by the pipeline, which examines every image.
    """
    webp = data.startswith(b"RIFF") and data[8:12] == b"WEBP"
    return webp or data.startswith(_MAGIC) or data[4:12] in (b"ftypavif", b"ftypavis")


def _kind(info: tarfile.TarInfo) -> str:
    if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
        return "file"
    if info.isdir():
        return "directory"
    return "link" if info.issym() or info.islnk() else "special"


def _pax_records(payload: bytes) -> dict[str, str]:
    """Parses records of the form `length key=value\\n`. The length is in bytes and includes its own digits."""
    records: dict[str, str] = {}
    while payload.strip(b"\0"):
        length = _number(payload.split(b" ", 1)[0].decode("ascii", "replace"))
        record = payload[:length]
        key, equals, value = record[record.find(b" ") + 1 :].partition(b"=")
        if not equals or not value.endswith(b"\n") or length > len(payload):
            raise BrokenTarError("an extended header is damaged")
        records[key.decode("utf-8", "backslashreplace")] = value[:-1].decode("utf-8", "backslashreplace")
        payload = payload[length:]
    return records


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BrokenTarError(f"an extended header has {text[:20]!r} where a number belongs")
    return int(text)
