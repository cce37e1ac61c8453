import gzip
import io
import random
import tarfile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mixer.data.datasets import archives
from mixer.data.datasets.archives import BrokenArchiveError, BrokenTarError

NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="\0/", exclude_categories=["Cs"]),
    min_size=1,
    max_size=150,
)
FILES = st.dictionaries(NAMES.filter(lambda name: name not in (".", "..")), st.binary(max_size=1500), max_size=6)


def make_tar(files, tar_format=tarfile.PAX_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def read_all(data):
    """Returns the members that are read before the end or the error, and the error."""
    found = []
    try:
        for member in archives.read_tar(archives.Stream(io.BytesIO(data))):
            found.append((member.name, member.data.read(member.size)))
    except (BrokenArchiveError, BrokenTarError) as error:
        return found, error
    return found, None


@given(FILES, st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
@settings(deadline=None, max_examples=60)
def test_reads_what_the_standard_library_writes(files, tar_format):
    found, error = read_all(make_tar(files, tar_format))
    assert error is None
    assert found == list(files.items())


@given(FILES, st.data())
@settings(deadline=None, max_examples=60)
def test_archive_cut_anywhere_before_its_end_marker_is_an_error(files, data):
    tar = make_tar(files)
    ends = len(tar.rstrip(b"\0"))
    end_mark = -(-ends // 512) * 512
    # Contents may end in zeros. The first whole block of zeros after them is not before this position.
    cut = data.draw(st.integers(0, max(0, end_mark - 512)))
    found, error = read_all(tar[:cut])
    assert isinstance(error, BrokenArchiveError)
    assert found == list(files.items())[: len(found)]


@given(FILES, st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), min_size=1, max_size=20))
@settings(deadline=None, max_examples=100)
def test_any_damage_ends_in_an_answer_or_a_named_error(files, flips):
    tar = bytearray(make_tar(files))
    for place, change in flips:
        tar[place % len(tar)] ^= change
    read_all(bytes(tar))  # must return, or raise one of the two errors


@given(st.binary(max_size=3000))
@example(b"")
@settings(deadline=None)
def test_garbage_is_no_tar(data):
    _, error = read_all(b"x" + data)
    assert isinstance(error, (BrokenArchiveError, BrokenTarError))


def header(**fields):
    info = tarfile.TarInfo("n01440764_1.JPEG")
    for name, value in fields.items():
        setattr(info, name, value)
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": -512}, "negative size"),
        ({"size": 1 << 63}, "claims"),
        ({"type": tarfile.XHDTYPE, "size": 1 << 40}, "a name of"),
        ({"type": tarfile.GNUTYPE_LONGNAME, "size": 1 << 40}, "a name of"),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_read(fields, message):
    with pytest.raises(BrokenTarError, match=message):
        list(archives.read_tar(archives.Stream(io.BytesIO(header(**fields) + bytes(2048)))))


@pytest.mark.parametrize(
    "record", [b"99999999 path=x\n", b"0 path=x\n", b"path=x\n", b"-5 a=b\n", b"9" * 5000 + b" a=b\n"]
)
def test_damaged_extended_header_is_refused(record):
    blocks = header(type=tarfile.XHDTYPE, size=len(record)) + record.ljust(-(-len(record) // 512) * 512, b"\0")
    with pytest.raises(BrokenTarError):
        list(archives.read_tar(archives.Stream(io.BytesIO(blocks + header() + bytes(1024)))))


def test_a_size_from_an_extended_header_counts():
    record = b"12 size=600\n"
    blocks = header(type=tarfile.XHDTYPE, size=len(record)) + record.ljust(512, b"\0") + header(size=7)
    found, error = read_all(blocks + b"a" * 600 + bytes(424 + 1024))
    assert error is None
    assert found == [("n01440764_1.JPEG", b"a" * 600)]


def test_kinds_and_the_links_without_data():
    types = {
        tarfile.REGTYPE: "file",
        tarfile.DIRTYPE: "directory",
        tarfile.SYMTYPE: "link",
        tarfile.LNKTYPE: "link",
        tarfile.FIFOTYPE: "special",
        tarfile.CHRTYPE: "special",
    }
    # All except the file claim data that they do not have, like hard links in real archives.
    blocks = b"".join(header(type=kind, size=0 if kind == tarfile.REGTYPE else 5000) for kind in types)
    members = archives.read_tar(archives.Stream(io.BytesIO(blocks + bytes(1024))))
    assert [member.kind for member in members] == list(types.values())


def test_inner_damage_and_outer_damage_have_different_names():
    inner = make_tar({"a": b"x" * 2000})
    outer = make_tar({"cut.tar": inner[:1000], "whole.tar": inner})

    def read(data):
        names = []
        for tar in archives.read_tar(archives.Stream(io.BytesIO(data))):
            try:
                names += [(tar.name, m.name, len(m.data.read(m.size))) for m in archives.read_tar(tar.data, tar.size)]
            except BrokenTarError:
                names.append((tar.name, "broken", 0))
        return names

    assert read(outer) == [("cut.tar", "broken", 0), ("whole.tar", "a", 2000)]
    with pytest.raises(BrokenArchiveError):
        read(outer[:3000])


def test_skipping_a_huge_member_takes_little_memory():
    class Zeros:
        def __init__(self):
            self.left = [header(size=50 << 30)]
            self.largest = self.total = 0

        def read(self, count):
            self.largest, self.total = max(self.largest, count), self.total + count
            return self.left.pop() if self.left else zeros[:count]

    zeros = bytes(1 << 20)
    source = Zeros()
    # After the member comes a block of zeros, the end marker.
    assert len(list(archives.read_tar(source))) == 1
    assert source.total == 512 + (50 << 30) + 512
    assert source.largest <= 1 << 20


@pytest.mark.parametrize("suffix", ["", "gz", "bz2", "xz"])
def test_open_stream_tells_compression_by_content(tmp_path, suffix):
    path = tmp_path / "archive.anything"
    with tarfile.open(path, f"w:{suffix}") as tar:
        info = tarfile.TarInfo("a")
        info.size = 5000
        tar.addfile(info, io.BytesIO(b"x" * 5000))
    with archives.open_stream(str(path)) as stream:
        assert [(m.name, m.data.read(m.size)) for m in archives.read_tar(stream)] == [("a", b"x" * 5000)]
        stream.drain()


def test_damaged_compression_is_an_error(tmp_path):
    path = tmp_path / "archive.tar.gz"
    data = bytearray(gzip.compress(make_tar({"a": b"x" * 5000})))
    data[-5] ^= 1  # the checksum
    path.write_bytes(data)
    with archives.open_stream(str(path)) as stream:
        assert len(list(archives.read_tar(stream))) == 1
        with pytest.raises(BrokenArchiveError, match="reading fails"):
            stream.drain()


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_a_decompression_bomb_is_found_long_before_its_end(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(archives, "_ALWAYS_READ", 2 << 20)
    path = tmp_path / "bomb.tar"
    with tarfile.open(path, f"w:{suffix}") as tar:
        for name in range(40):
            info = tarfile.TarInfo(f"n01440764_{name}.JPEG")
            info.size = 1 << 20
            tar.addfile(info, io.BytesIO(b"\xff\xd8\xff" + bytes(info.size)))
    read = []
    with archives.open_stream(str(path)) as stream, pytest.raises(BrokenArchiveError, match="decompression bomb"):
        read += [len(member.data.read(member.size)) for member in archives.read_tar(stream)]
    assert stream.position < (2 << 20) + max(2 << 20, 10 * path.stat().st_size)


@pytest.mark.parametrize("suffix", ["", "gz"])
def test_what_hardly_compresses_is_no_bomb(tmp_path, monkeypatch, suffix):
    """Images unpack to far less than ten times their size. An archive without compression may hold anything."""
    monkeypatch.setattr(archives, "_ALWAYS_READ", 0)
    path, image = tmp_path / "archive.tar", random.Random(0).randbytes(200_000)
    with tarfile.open(path, f"w:{suffix}") as tar:
        info = tarfile.TarInfo("a")
        info.size = 3 * len(image)
        tar.addfile(info, io.BytesIO(image + bytes(2 * len(image))))
    with archives.open_stream(str(path)) as stream:
        assert [len(member.data.read(member.size)) for member in archives.read_tar(stream)] == [3 * len(image)]
        stream.drain()


def test_missing_archive_is_named(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"no archive at .*nowhere\.tar"),
        archives.open_stream(str(tmp_path / "nowhere.tar")),
    ):
        pass


@pytest.mark.parametrize("name", ["/etc/passwd", "../a", "a/../../b", "a/..", "\\\\host\\a", "a\\..\\b"])
def test_unsafe_names(name):
    assert archives.unsafe_name(name)


@pytest.mark.parametrize("name", ["a", "a/b.jpg", "a..b/c", "./a", "...", ".hidden"])
def test_safe_names(name):
    assert not archives.unsafe_name(name)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_is_image_knows_the_formats_that_pillow_writes(image_format):
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, image_format)
    assert archives.is_image(buffer.getvalue())


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"<html>", b"RIFF0000WAVE", b"\0" * 100])
def test_is_image_refuses_others(data):
    assert not archives.is_image(data)
