"""Files in a bucket: listings, byte ranges, errors as OSErrors, and what is said of a bucket that cannot be used."""

import contextlib
import time
import types

import pytest

from mixer.runtime import bucket, bucket_check, files
from mixer.runtime.bucket import Range
from mixer.runtime.errors import UserError
from tests.bucket.faults import Fault


@pytest.fixture
def letters(bucket_here):
    """An object with the bytes of the alphabet."""
    bucket_here.put("a/letters", b"abcdefghijklmnopqrstuvwxyz")
    return bucket_here.path("a/letters")


# ---------------------------------------------------------------------------------------------------------------- paths


def test_a_path_in_a_bucket_stays_as_it_is_and_a_local_one_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert bucket.absolute("gs://bucket/a/b") == "gs://bucket/a/b"
    assert bucket.absolute("a/b") == f"{tmp_path}/a/b"
    assert bucket.split("gs://bucket/a/b") == ("bucket", "a/b")
    assert bucket.is_remote("s3://bucket/a")
    assert not bucket.is_remote("gs/bucket")


# -------------------------------------------------------------------------------------------------------------- objects


def test_listings(bucket_here):
    for name in ("run/a", "run/b/c", "run/b/d/e", "run/empty/", "runs/f"):
        bucket_here.put(name, name.encode())
    run = bucket_here.path("run")
    assert list(bucket.listing(run)) == ["a", "b/c", "b/d/e"]
    assert bucket.listing(run + "/")["b/c"] == (
        7,
        "Cio75WFR3ibgJFPmVzcGXA==",
    )  # printf run/b/c | openssl md5 -binary | base64
    folders, found = bucket.children(run)
    assert (folders, list(found)) == (["b", "empty"], ["a"])
    assert bucket.listing(bucket_here.path("nothing")) == {}
    assert files.is_folder(run)
    assert not files.is_folder(bucket_here.path("ru"))
    assert "run/a" in bucket.listing(bucket_here.path())


def test_a_thousand_files_take_one_request(bucket_here):
    for number in range(1001):
        bucket_here.put(f"many/{number:04}", b"")
    bucket_here.clear_log()
    assert len(bucket.listing(bucket_here.path("many"))) == 1001
    assert [entry.operation for entry in bucket_here.log() if entry.operation != "bucket"] == ["list", "list"]


def test_byte_ranges_are_exact(bucket_here, letters):
    parts = bucket.read([Range(letters), Range(letters, 3, 6), Range(letters, 20), Range(letters, 0, 1)])
    assert parts == [b"abcdefghijklmnopqrstuvwxyz", b"def", b"uvwxyz", b"a"]
    assert [entry.sent for entry in bucket_here.log() if "3-5" in entry.range] == [3]
    with pytest.raises(FileNotFoundError, match=r"there is no such file: 'gs://.*/a/numbers'"):
        bucket.read([Range(letters), Range(bucket_here.path("a/numbers"))])
    for start, stop in ((20, 30), (30, 40)):
        with pytest.raises(OSError, match=r"'gs://.*/a/letters'"):
            bucket.read([Range(letters, start, stop)])
    with pytest.raises(OSError, match="Invalid GCS bucket name"):
        bucket.read([Range("gs://x/letters")])


def test_parts_are_asked_for_at_the_same_time(bucket_here, letters):
    bucket_here.control(latency_ms=300)
    since = time.monotonic()
    bucket.read([Range(letters, place, place + 1) for place in range(20)])
    assert time.monotonic() - since < 3  # one after the other they would take six seconds
    assert max(entry.in_flight for entry in bucket_here.log()) >= 10


def test_files_are_written_read_and_deleted(bucket_here):
    path = bucket_here.path("run/config.json")
    assert not files.exists(path)
    files.write_text(f"{path}.md", "a name that begins alike")
    assert not files.exists(path)
    files.delete(f"{path}.md")
    files.write_text(path, "{}")
    assert files.exists(path)
    assert files.read_text(path) == "{}"
    with files.opened_to_write(path) as file:
        file.write(b"[1]")
    assert bucket_here.content("run/config.json") == b"[1]"
    with contextlib.suppress(KeyError), files.opened_to_write(path) as file:
        file.write(b"half")
        raise KeyError
    assert files.read_bytes(path) == b"[1]"
    for _ in range(2):  # the second time it is no longer there
        files.delete(path)
    assert bucket_here.objects() == {}


# ------------------------------------------------------------------------------------------------------------- troubles

PASSING = {
    "busy": Fault(".", status=429, times=2),
    "out of order": Fault(".", status=503, times=2),
    "cut": Fault("GET", cut_after=5, times=2),
    "silent": Fault("GET .*letters", hang_seconds=20, times=1),
}


@pytest.mark.parametrize("trouble", PASSING)
def test_a_trouble_that_passes_is_survived(bucket_here, letters, monkeypatch, trouble):
    monkeypatch.setattr(bucket, "_SILENCE", 6.0)
    bucket_here.control(fail=[PASSING[trouble]])
    assert bucket.read([Range(letters, 0, 20)]) == [b"abcdefghijklmnopqrst"]
    bucket_here.control(fail=[PASSING[trouble]] if trouble in ("busy", "out of order") else [])
    bucket.write(letters, b"new")
    assert bucket_here.content("a/letters") == b"new"


def test_one_change_a_second_is_enough(bucket_here, letters):
    bucket_here.control(one_per_second=True)
    for text in (b"one", b"two"):
        bucket.write(letters, text)
    assert bucket_here.content("a/letters") == b"two"


def test_what_is_refused_for_good_is_an_oserror(bucket_here, letters, monkeypatch):
    monkeypatch.setattr(bucket, "_SILENCE", 1.0)
    monkeypatch.setattr(bucket, "_PATIENCE", 2.0)
    bucket_here.control(fail=[Fault(".", status=403)])
    for act in (
        lambda: bucket.read([Range(letters)]),
        lambda: bucket.write(letters, b""),
        lambda: bucket.delete(letters),
        lambda: bucket.listing(letters),
        lambda: bucket.children(letters),
        lambda: files.is_folder(letters),
    ):
        with pytest.raises(PermissionError, match=r"\[Errno 13\] [^{}]+: 'gs://.*/a/letters'$"):
            act()
    bucket_here.control(fail=[Fault(".", status=503)])
    with pytest.raises(OSError, match="no good answer in 3 seconds"):
        bucket.read([Range(letters)])
    with pytest.raises(OSError, match=r"'gs://.*/a/letters'"):
        bucket.write(letters, b"")


def test_errors_of_tensorflow_become_oserrors():
    from mixer.data.tensorflow import tf

    for error, expected in (
        (tf.errors.NotFoundError, FileNotFoundError),
        (tf.errors.PermissionDeniedError, PermissionError),
        (tf.errors.UnavailableError, OSError),
    ):
        with pytest.raises(expected, match="a reason"), bucket.as_os_errors("gs://bucket/run"):
            raise error(None, None, "a reason")
    with pytest.raises(OSError, match=r"^gs://My_Bucket cannot be the name of a bucket \("):
        bucket.store("My_Bucket")
    with pytest.raises(ValueError, match="not of a bucket"), bucket.as_os_errors("gs://bucket/run"):
        raise ValueError("not of a bucket")


# ---------------------------------------------------------------------------------------------------------------- check


def test_a_bucket_that_can_be_used(bucket_here):
    bucket_check.check("runs/local", for_run=True)
    bucket_check.check(bucket_here.path("run"), for_run=True)
    bucket_check.check(bucket_here.path())


@pytest.mark.parametrize(
    ("path", "for_run", "said"),
    [
        ("s3://bucket/run", False, "s3://bucket/run: only local paths and gs:// are supported; copy the files to one"),
        ("gs:///run", False, "gs:///run: the name of the bucket is missing; expected gs://BUCKET/FOLDER"),
        ("gs://mixer-test", True, "gs://mixer-test: a run needs a folder in the bucket; expected gs://mixer-test/FOL"),
        ("gs://mixer-tset/run", False, "gs://mixer-tset: there is no such bucket; check the name"),
    ],
)
def test_what_cannot_be_used_is_said(bucket_here, path, for_run, said):
    with pytest.raises(UserError) as raised:
        bucket_check.check(path, for_run)
    assert str(raised.value).startswith(said)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            Fault(".", status=403),
            r"may not be read by this account \(.*\): give it roles/storage.objectUser and",
        ),
        (Fault(".", status=503), r"does not answer \(.*\): try again later"),
        (Fault(".", hang_seconds=30), r"does not answer \(.*\): try again later"),
    ],
)
def test_a_bucket_that_does_not_answer_well_is_said_within_ten_seconds(bucket_here, fault, said):
    bucket_here.control(fail=[fault])
    since = time.monotonic()
    with pytest.raises(UserError, match=said):
        bucket_check.check(bucket_here.path("run"))
    assert time.monotonic() - since < 10


def test_orbax_needs_a_package_for_a_hierarchical_namespace(bucket_here, monkeypatch):
    described = types.SimpleNamespace(hierarchical_namespace_enabled=True)
    monkeypatch.setattr(type(bucket.client()), "get_bucket", lambda *_, **__: described)
    bucket_check.check(bucket_here.path("data"))
    with pytest.raises(UserError, match="run `pip install google-cloud-storage-control`"):
        bucket_check.check(bucket_here.path("run"), for_run=True)


def test_without_credentials_the_line_says_how_to_get_some(monkeypatch):
    from google.auth.exceptions import DefaultCredentialsError

    def client():
        raise DefaultCredentialsError("Your default credentials were not found.")

    bucket_check._check_bucket.cache_clear()
    monkeypatch.setattr(bucket, "client", client)
    with pytest.raises(UserError, match=r"no valid credentials \(Your .* found.\): run `gcloud auth application-def"):
        bucket_check.check("gs://bucket/data")
