"""The bytes of image files, local and in a bucket."""

import pytest

from mixer.data.folders import image_files
from mixer.runtime import bucket
from mixer.runtime.errors import UserError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("gs://b cannot be the name of a bucket (too short)"), "gs://b/a.jpg cannot be read (gs://b cannot be"),
        (OSError(13, "Forbidden", "gs://b/c.jpg"), "gs://b/c.jpg cannot be read (Forbidden): see to the bucket"),
    ],
)
def test_a_bucket_that_fails_is_one_line(monkeypatch, error, said):
    def read(ranges):
        raise error

    monkeypatch.setattr(bucket, "read", read)
    with pytest.raises(UserError) as caught:
        image_files.files_bytes(["gs://b/a.jpg", "gs://b/c.jpg"])
    assert str(caught.value).startswith(said)
    assert "None" not in str(caught.value)
