"""Reading tar archives, and tars within tars, as one forward stream that writes nothing to disk.

`tarfile` reads streams too, but it takes an archive cut off between two members, or one whose next header is
garbage, for a finished one; it believes a header that claims 2^60 bytes and skips that far; and a broken
inner tar and a broken outer one raise the same error. Here the three have names, which decides whether one
class or a whole download is lost: `BrokenTarError` (this tar), `BrokenArchiveError` (the stream all of it
comes from).

Source of the format: POSIX.1-2001 pax and the GNU manual, "Basic Tar Format".
"""

import bz2
import contextlib
import gzip
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
_MAX_EXTENSION_BYTES = 64 << 10  # a pax or GNU long-name header; real ones have a few hundred bytes
MAX_IMAGE_BYTES = 64 << 20  # ImageNet's largest JPEG has under 20 MiB; more is a damaged header or a trap
_MOST_RATIO = 10  # of unpacked to packed bytes; JPEGs hardly compress, and tar adds a few per cent of zeros
_ALWAYS_READ = 1 << 30  # unpacked bytes, whatever the ratio
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*")  # the last two: TIFF
_OPENERS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZ": bz2.open,
    b"\xfd7": lzma.open,
}


class BrokenTarError(ValueError):
    """A tar that is cut off or whose structure is damaged."""


class BrokenArchiveError(ValueError):
    """The outermost stream ends too soon or cannot be decompressed: nothing behind this place can be read."""


@runtime_checkable
class Reader(Protocol):
    """What bytes are read from: a file (fewer than `count` at its end), a `Stream` or a `Section` (never)."""

    def read(self, count: int) -> bytes: ...


class Stream:
    """The outermost bytes, decompressed: `read` returns exactly `count` bytes.

    Args:
        raw: where they come from.
        packed: how many bytes were taken from the file so far, where it is a compressed one.

    Raises:
        BrokenArchiveError: by `read`, where the stream ends, its compression is damaged, or it is a decompression
            bomb: what is unpacked is written to disk by whoever reads it.
    """

    def __init__(self, raw: Reader, packed: Callable[[], int] | None = None) -> None:
        self._raw = raw
        self._packed = packed
        self.position = 0  # bytes read so far, after decompression

    def read(self, count: int) -> bytes:
        data = self.read_up_to(count)
        if len(data) < count:
            raise BrokenArchiveError(f"it ends after {self.position:,} bytes (unpacked), before its end mark")
        return data

    def read_up_to(self, count: int) -> bytes:
        """Like `read`, but shorter at the end of the stream."""
        try:
            data = self._raw.read(count)
            # A raw file may return less than was asked for; only an empty answer is the end.
            while len(data) < count and (more := self._raw.read(count - len(data))):
                data += more
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:  # bz2 says OSError for damaged data
            raise BrokenArchiveError(f"reading fails after {self.position:,} bytes: {error}") from None
        self.position += len(data)
        if self._packed and self.position > max(_ALWAYS_READ, _MOST_RATIO * self._packed()):
            raise BrokenArchiveError(
                f"its first {self._packed():,} bytes unpack to {self.position:,}, a decompression bomb: images come to "
                f"{_MOST_RATIO} times as many at most"
            )
        return data

    def drain(self) -> None:
        """Reads what is left, so that the checksum at a compressed stream's end is verified."""
        while self.read_up_to(_SKIP_CHUNK):
            pass


class Member(NamedTuple):
    """One entry of a tar. `data` is valid until the next member is asked for."""

    name: str  # undecodable bytes appear as \\xNN
    size: int  # bytes
    kind: str  # "file", "directory", "link" or "special"
    data: "Section"


class Section:
    """The `size` bytes of one member, read from `source` as they are asked for."""

    def __init__(self, source: Reader, size: int) -> None:
        self._source = source
        self.remaining = size

    def read(self, count: int) -> bytes:
        """Returns exactly `count` bytes. Raises BrokenTarError when fewer are left in the member."""
        if count > self.remaining:
            raise BrokenTarError(f"it needs {count - self.remaining:,} bytes more than it has")
        self.remaining -= count
        return self._source.read(count)

    def skip(self, count: int) -> None:
        while count > 0:
            count -= len(self.read(min(count, _SKIP_CHUNK)))


@contextlib.contextmanager
def open_stream(path: str) -> Iterator[Stream]:
    """Opens, for a `with` block, a tar, plain or compressed by gzip, bzip2 or xz; local or `gs://`.

    The content tells which, not the name.

    Raises:
        FileNotFoundError: there is none.
    """
    file = epath.Path(path)
    if not file.exists():
        raise FileNotFoundError(f"there is no archive at {path}")
    with file.open("rb") as probe:
        magic = probe.read(2)
    with file.open("rb") as raw:
        yield Stream(_OPENERS[magic](raw, "rb"), packed=raw.tell) if magic in _OPENERS else Stream(raw)


def read_tar(source: Reader, size: int | None = None) -> Iterator[Member]:
    """Yields the members of the tar that `source` holds, each before the next is read.

    Args:
        source: where the tar begins.
        size: bytes of the tar if they are known (a tar within a tar); `None` for the outermost stream.

    Raises:
        BrokenTarError: a header is damaged, or the tar ends without its end marker.
        BrokenArchiveError: passed on from the outermost stream.
    """
    tar = Section(source, size if size is not None else 1 << 62)
    long_name: str | None = None
    long_size: int | None = None
    while True:
        header = tar.read(_BLOCK)
        if not any(header):  # the end marker: a block of zeros
            return
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "backslashreplace")
        except tarfile.HeaderError as error:
            raise BrokenTarError(f"a header is damaged ({error})") from None
        if info.size < 0:
            raise BrokenTarError("a header gives a negative size")
        extension = info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME)
        if extension:
            if info.size > _MAX_EXTENSION_BYTES:
                raise BrokenTarError(f"a name of {info.size:,} bytes")
            payload = tar.read(info.size)
            tar.skip(-info.size % _BLOCK)
            if info.type == tarfile.GNUTYPE_LONGNAME:
                long_name = payload.rstrip(b"\0").decode("utf-8", "backslashreplace")
            else:
                records = _pax_records(payload)
                long_name = records.get("path", long_name)
                long_size = _number(records["size"]) if "size" in records else long_size
            continue
        if info.type == tarfile.GNUTYPE_SPARSE and header[_SPARSE_CONTINUES]:
            raise BrokenTarError(f"{info.name} is a sparse file with a list of holes, which is not read here")
        member_size = info.size if long_size is None else long_size
        if info.type in _WITHOUT_DATA:
            member_size = 0  # whatever the header says: a hard link repeats its target's size
        if member_size > tar.remaining:
            raise BrokenTarError(f"{info.name} claims {member_size:,} bytes where {tar.remaining:,} are left")
        section = Section(tar, member_size)
        # Global pax headers and long link targets belong to no file and change nothing that is read here.
        if info.type not in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            yield Member(long_name or info.name, member_size, _kind(info), section)
            long_name = long_size = None
        section.skip(section.remaining)
        tar.skip(-member_size % _BLOCK)


def unsafe_name(name: str) -> bool:
    """Whether a member's or a manifest's name leaves its folder: absolute, or with a `..` in it."""
    return name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/")


def is_image(data: bytes) -> bool:
    """Whether `data` begins like an image that the input pipeline decodes, whatever its file is called.

    Some files named .JPEG in ImageNet are PNGs, GIFs or BMPs; they are kept. Damage further inside is the
    pipeline's to find, which looks at every image anyway.
    """
    return data.startswith(_MAGIC) or (data.startswith(b"RIFF") and data[8:12] == b"WEBP")


def _kind(info: tarfile.TarInfo) -> str:
    if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
        return "file"
    if info.isdir():
        return "directory"
    return "link" if info.issym() or info.islnk() else "special"


def _pax_records(payload: bytes) -> dict[str, str]:
    """Parses `length key=value\\n` records (lengths in bytes, themselves included)."""
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
