"""The fake bucket: the real clients accept it, its faults do what they say, and its log says what happened."""

import base64
import concurrent.futures
import http.client
import json
import os
import socket
import subprocess
import sys
import time
import urllib.parse

import google_crc32c
import pytest

from tests.bucket.clients import CLIENTS, CONTENT
from tests.bucket.fake_bucket import NAME, ROOT, FakeBucket
from tests.bucket.faults import Fault

DESCRIBED = {"tensorflow": "TSL", "tensorstore": "tensorstore/", "google": "gcloud-python/", "array_record": "gl-cpp/"}


def ask(bucket: FakeBucket, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """Sends one request. Returns the status and the body of the answer."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(bucket.url).netloc, timeout=10)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def write(bucket: FakeBucket, name: str, data: bytes = b"x", **query: object) -> int:
    """Uploads an object by the API. Returns the status."""
    query = {"uploadType": "media", "name": name, **query}
    return ask(bucket, "POST", f"/upload/storage/v1/b/{NAME}/o?{urllib.parse.urlencode(query)}", data)[0]


def read(bucket: FakeBucket, name: str, **headers: str) -> tuple[int, bytes]:
    """Reads an object by the API. Returns the status and the body."""
    return ask(bucket, "GET", f"/storage/v1/b/{NAME}/o/{name}?alt=media", b"", **headers)


def list_pages(bucket: FakeBucket, **query: object) -> list[tuple[list[str], list[str]]]:
    """Returns names and folders of each page."""
    pages: list[tuple[list[str], list[str]]] = []
    token: dict[str, str] = {}
    while True:
        words = urllib.parse.urlencode({**query, **token})
        page = json.loads(ask(bucket, "GET", f"/storage/v1/b/{NAME}/o?{words}")[1])
        pages.append(([item["name"] for item in page.get("items", [])], page.get("prefixes", [])))
        if "nextPageToken" not in page:
            return pages
        token = {"pageToken": page["nextPageToken"]}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_real_client_works(bucket, client):
    done = subprocess.run(
        [sys.executable, "-m", "tests.bucket.clients", client, bucket.path("folder")], cwd=ROOT, check=False,
        env={**os.environ, **bucket.environment()}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(bucket.objects()) == ["folder/left.bin"]
    if client != "array_record":
        assert bucket.content("folder/left.bin") == CONTENT
    reads = [entry for entry in bucket.log() if entry.operation == "read" and DESCRIBED[client] in entry.user_agent]
    assert any(entry.range for entry in reads)
    assert {entry.name for entry in reads} <= {"folder/left.bin", "folder/big", "folder/a b/é+%.bin", "folder/absent"}
    assert not [entry for entry in bucket.log() if entry.note]


def test_this_process_can_be_brought_here_too(bucket):
    import tensorstore

    bucket.put("here/x", b"0123")
    with bucket.here():
        found = tensorstore.KvStore.open(bucket.path("here/")).result().read("x", byte_range=slice(1, 3)).result()
    assert found.value == b"12"
    assert os.environ.get("TENSORSTORE_GCS_HTTP_URL") != bucket.url


def test_a_test_has_the_objects_without_the_log(bucket, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "sub/b").write_bytes(b"4567")
    bucket.upload(tmp_path, "data")
    bucket.put("other", b"")
    assert bucket.objects() == {"data/a": 3, "data/sub/b": 4, "other": 0}
    assert bucket.objects("data/s") == {"data/sub/b": 4}
    bucket.flip("data/a", -1)
    assert bucket.content("data/a") == b"12" + bytes([ord("3") ^ 255])
    bucket.delete("other")
    for absent in (bucket.content, bucket.delete):
        with pytest.raises(FileNotFoundError, match="other"):
            absent("other")
    assert bucket.log() == []


def test_pages_of_a_listing(bucket):
    for name in ("a/1", "a/2", "b", "c/", "c/x", "d"):
        bucket.put(name, b"")
    assert list_pages(bucket, maxResults=4) == [(["a/1", "a/2", "b", "c/"], []), (["c/x", "d"], [])]
    assert list_pages(bucket, delimiter="/") == [(["b", "d"], ["a/", "c/"])]
    assert list_pages(bucket, delimiter="/", maxResults=1) == [([], ["a/"]), (["b"], []), ([], ["c/"]), (["d"], [])]
    assert list_pages(bucket, delimiter="/", includeTrailingDelimiter="true") == [(["b", "c/", "d"], ["a/", "c/"])]
    assert list_pages(bucket, delimiter="/", prefix="a/") == [(["a/1", "a/2"], [])]
    assert list_pages(bucket, startOffset="a/2", endOffset="c/x") == [(["a/2", "b", "c/"], [])]
    assert list_pages(bucket, prefix="e") == [([], [])]


@pytest.mark.parametrize(
    ("asked", "status", "expected"),
    [
        ("bytes=2-4", 206, b"234"),
        ("bytes=8-20", 206, b"89"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-3", 206, b"789"),
        ("bytes=-20", 206, b"0123456789"),
        ("bytes=10-", 416, b""),
        ("", 200, b"0123456789"),
    ],
)
def test_ranges(bucket, asked, status, expected):
    bucket.put("x", b"0123456789")
    assert read(bucket, "x", Range=asked) == (status, expected)
    entry = bucket.log()[0]
    assert (entry.operation, entry.bucket, entry.name, entry.range) == ("read", NAME, "x", asked)
    assert (entry.status, entry.sent, entry.received) == (status, len(expected), 0)


def test_conditions_on_the_generation(bucket):
    assert write(bucket, "x", ifGenerationMatch=0) == 200
    assert write(bucket, "x", ifGenerationMatch=0) == 412
    resource = json.loads(ask(bucket, "GET", f"/storage/v1/b/{NAME}/o/x")[1])
    assert base64.b64decode(resource["crc32c"]) == google_crc32c.value(b"x").to_bytes(4, "big")
    assert resource["size"] == "1"
    generation = resource["generation"]
    place = f"/storage/v1/b/{NAME}/o/x?alt=media"
    assert ask(bucket, "GET", f"{place}&ifGenerationNotMatch={generation}")[0] == 304
    assert write(bucket, "x", b"new", ifGenerationMatch=generation) == 200
    assert ask(bucket, "GET", f"{place}&generation={generation}")[0] == 404
    assert ask(bucket, "GET", f"{place}&ifGenerationMatch={generation}")[0] == 412
    assert ask(bucket, "DELETE", f"/storage/v1/b/{NAME}/o/x?ifGenerationMatch={generation}")[0] == 412
    assert bucket.content("x") == b"new"


def test_a_misspelled_bucket_is_not_there(bucket):
    for path in ("o", "o/x?alt=media", "o/x", "storageLayout", ""):
        assert ask(bucket, "GET", f"/storage/v1/b/misspelled/{path}".rstrip("/"))[0] == 404, path
    assert ask(bucket, "POST", "/upload/storage/v1/b/misspelled/o?uploadType=media&name=x", b"x")[0] == 404
    assert {entry.bucket for entry in bucket.log()} == {"misspelled"}


@pytest.mark.parametrize("status", [403, 404, 429, 503])
def test_requests_are_refused_a_number_of_times(bucket, status):
    bucket.control(fail=[Fault("^POST .*name=x", status, times=2, skip=1)])
    assert [write(bucket, "x") for _ in range(4)] == [200, status, status, 200]
    assert [write(bucket, "y") for _ in range(2)] == [200, 200]
    entries = [entry for entry in bucket.log() if entry.note == "fault"]
    assert [(entry.operation, entry.name, entry.status) for entry in entries] == [("write", "x", status)] * 2


def test_a_refusal_for_good_has_no_effect(bucket):
    bucket.put("x", b"0")
    bucket.control(fail=[Fault("^(POST|DELETE)", 403)])
    assert write(bucket, "x", b"1") == 403
    assert ask(bucket, "DELETE", f"/storage/v1/b/{NAME}/o/x")[0] == 403
    assert read(bucket, "x") == (200, b"0")
    bucket.control(fail=[])
    assert write(bucket, "x", b"1") == 200


def test_one_change_a_second(bucket):
    bucket.control(one_per_second=True)
    assert [write(bucket, name) for name in ("x", "y", "x")] == [200, 200, 429]
    assert ask(bucket, "DELETE", f"/storage/v1/b/{NAME}/o/x")[0] == 429
    time.sleep(1)
    assert write(bucket, "x") == 200


def test_an_answer_is_cut_off(bucket):
    bucket.put("x", bytes(10_000))
    bucket.control(fail=[Fault("alt=media", cut_after=5000, times=1)])
    with pytest.raises(http.client.IncompleteRead):
        read(bucket, "x")
    assert read(bucket, "x") == (200, bytes(10_000))
    assert [(entry.sent, entry.note) for entry in bucket.log()] == [(5000, "fault"), (10_000, "")]


def test_an_answer_is_lost_after_the_effect(bucket):
    bucket.control(fail=[Fault("^POST", cut_after=0)])
    with pytest.raises(http.client.RemoteDisconnected):
        write(bucket, "x", b"1")
    assert bucket.content("x") == b"1"


def test_latency_a_hang_and_a_slow_answer(bucket):
    bucket.put("x", bytes(100_000))

    def seconds() -> float:
        start = time.monotonic()
        assert read(bucket, "x") == (200, bytes(100_000))
        return time.monotonic() - start

    bucket.control(latency_ms=100)
    assert seconds() >= 0.1
    bucket.control(latency_ms=0, fail=[Fault("GET", hang_seconds=0.3, times=1)])
    assert seconds() >= 0.3
    bucket.control(bytes_per_second=500_000)
    assert seconds() >= 0.2
    for entry, least in zip(bucket.log(), (0.1, 0.3, 0.2), strict=True):
        assert least <= entry.seconds < 5


def test_a_reset_ends_what_hangs_and_forgets_it(bucket):
    bucket.control(fail=[Fault("^POST", hang_seconds=60)])
    body = (
        b"POST /upload/storage/v1/b/%b/o?uploadType=media&name=x HTTP/1.1\r\nContent-Length: 1\r\n\r\nx" % NAME.encode()
    )
    with socket.create_connection(("127.0.0.1", urllib.parse.urlsplit(bucket.url).port), timeout=10) as client:
        client.sendall(body)
        time.sleep(0.2)
        assert read(bucket, "y")[0] == 404
        assert [entry.in_flight for entry in bucket.log()] == [2]
        bucket.reset()
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    assert bucket.objects() == {}
    assert bucket.log() == []


def test_other_hosts_are_refused(bucket):
    netloc = urllib.parse.urlsplit(bucket.url).netloc
    connection = http.client.HTTPSConnection(netloc, timeout=10)
    connection.set_tunnel("example.org", 443)
    with pytest.raises(OSError, match="403"):
        connection.request("GET", "/")
    connection.close()
    assert [(entry.method, entry.path, entry.status) for entry in bucket.log()] == [("CONNECT", "example.org:443", 403)]


def test_an_upload_that_breaks_off_leaves_nothing(bucket):
    with socket.create_connection(("127.0.0.1", urllib.parse.urlsplit(bucket.url).port), timeout=10) as client:
        client.sendall(b"PUT /%b/x HTTP/1.1\r\nContent-Length: 10\r\n\r\n12345" % NAME.encode())
    time.sleep(0.1)
    assert bucket.objects() == {}


def test_the_log_is_cleared_of_all_that_has_begun(bucket):
    read(bucket, "x")
    assert len(bucket.log()) == 1
    bucket.control(latency_ms=500)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        slow = pool.submit(read, bucket, "x")
        time.sleep(0.1)
        bucket.clear_log()
        slow.result()
    assert bucket.log() == []
