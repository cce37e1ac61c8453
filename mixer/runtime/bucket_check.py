"""Checks that a bucket can be used, within seconds and before anything else is begun."""

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

from mixer.runtime import bucket
from mixer.runtime.errors import UserError

_FIRST_ANSWER = 8.0  # seconds within which a bucket must answer for the first time

_ROLES = "roles/storage.objectUser and roles/storage.legacyBucketReader"


def check(path: str | os.PathLike[str], for_run: bool = False) -> None:
    """Checks that a path can be used: it is local, or in a bucket that answers. TensorFlow would try for minutes.

    Args:
      path: local or an address.
      for_run: the path is a run's folder. Orbax asks for the bucket's own properties, which needs a permission.

    Raises:
      UserError: there is no such bucket, it does not answer in time, or it may not be read.
    """
    if bucket.is_remote(path):
        if not str(path).startswith("gs://"):
            raise UserError(f"{path}: only local paths and gs:// are supported; copy the files to one of them")
        name, key = bucket.split(path)
        if not name:
            raise UserError(f"{path}: the name of the bucket is missing; expected gs://BUCKET/FOLDER")
        _check_bucket(name, key if for_run else "", for_run)


@functools.cache
def _check_bucket(name: str, key: str, for_run: bool) -> None:
    """Asks a bucket for at most one object, and for its properties. Raises UserError."""
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError

    if for_run and not key.strip("/"):
        raise UserError(f"gs://{name}: a run needs a folder in the bucket; expected gs://{name}/FOLDER")
    try:
        with _quickly() as options:
            next(iter(bucket.client().list_blobs(name, prefix="mixer", max_results=1, **options)), None)
            if for_run:
                found = bucket.client().get_bucket(name, **options)
    except exceptions.NotFound:
        raise UserError(f"gs://{name}: there is no such bucket; check the name") from None
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise UserError(
            f"gs://{name} may not be read by this account ({bucket.reason(error)}): give it {_ROLES} on the bucket"
        ) from None
    except GoogleAuthError as error:
        raise UserError(
            f"gs://{name}: no valid credentials ({bucket.reason(error)}): run `gcloud auth application-default login`, "
            "or use a machine with a service account"
        ) from None
    except (exceptions.GoogleAPIError, OSError) as error:
        raise UserError(f"gs://{name} does not answer ({bucket.reason(error)}): try again later") from None
    if for_run and found.hierarchical_namespace_enabled:
        _require_folders(name)


def _require_folders(name: str) -> None:
    """Checks that orbax can delete folders in a bucket with a hierarchical namespace. Raises UserError."""
    try:
        from google.cloud import storage_control_v2  # noqa: F401
    except ImportError:
        raise UserError(
            f"gs://{name} has a hierarchical namespace, for which orbax needs another package: run `pip install "
            "google-cloud-storage-control`, or use a bucket without"
        ) from None


@contextlib.contextmanager
def _quickly() -> Iterator[dict[str, Any]]:
    """Yields arguments of a request that must be answered soon."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    yield {"timeout": _FIRST_ANSWER / 2, "retry": DEFAULT_RETRY.with_timeout(_FIRST_ANSWER)}
