"""What each real client does with a bucket: python -m tests.bucket.clients CLIENT gs://BUCKET/FOLDER

Every client writes, reads whole and in part, lists, renames and deletes, and leaves `left.bin`. The status is 0 if all
that it found was right.
"""

import os
import pathlib
import sys
import tempfile
from collections.abc import Callable

CONTENT = bytes(range(256)) * 5000
ODD = "a b/é+%.bin"  # a name that has to be escaped


def check(found: object, expected: object) -> None:
    """Ends the process if the two differ."""
    if found != expected:
        sys.exit(f"found {str(found)[:200]}, expected {str(expected)[:200]}")


def tensorflow(folder: str) -> None:
    import tensorflow as tf

    gfile = tf.io.gfile
    with gfile.GFile(f"{folder}/{ODD}", "wb") as file:
        file.write(CONTENT)
    with gfile.GFile(f"{folder}/{ODD}", "rb") as file:
        check(file.read(), CONTENT)
        file.seek(1000)
        check(file.read(10), CONTENT[1000:1010])
    check(gfile.listdir(folder), ["a b/"])
    check(gfile.glob(f"{folder}/*/*"), [f"{folder}/{ODD}"])
    check(gfile.stat(f"{folder}/{ODD}").length, len(CONTENT))
    gfile.rename(f"{folder}/{ODD}", f"{folder}/left.bin")
    check((gfile.exists(f"{folder}/{ODD}"), gfile.exists(f"{folder}/left.bin")), (False, True))
    gfile.copy(f"{folder}/left.bin", f"{folder}/deep/er/copy")
    gfile.rmtree(f"{folder}/deep")
    check(list(gfile.walk(folder)), [(folder, [], ["left.bin"])])
    gfile.makedirs(f"{folder}/new")
    check(gfile.isdir(f"{folder}/new"), True)
    gfile.rmtree(f"{folder}/new")


def tensorstore(folder: str) -> None:
    import tensorstore as ts

    store = ts.KvStore.open(f"{folder}/").result()
    store.write(ODD, CONTENT).result()
    check(store.read(ODD).result().value, CONTENT)
    check(store.read(ODD, byte_range=slice(1000, 1010)).result().value, CONTENT[1000:1010])
    check(store.read(ODD, byte_range=slice(-10, None)).result().value, CONTENT[-10:])  # a suffix range
    check(store.read("absent").result().state, "missing")
    first = store.write("left.bin", b"1").result()
    store.write("left.bin", CONTENT, if_equal=first.generation).result()
    stale = store.write("left.bin", b"2", if_equal=first.generation).result()
    check(stale.generation == first.generation, False)
    check(sorted(store.list().result()), [ODD.encode(), b"left.bin"])
    store.delete_range(ts.KvStore.KeyRange("a", "b")).result()
    check(store.list().result(), [b"left.bin"])


def google(folder: str) -> None:
    from google.cloud import storage

    client = storage.Client()
    name, _, prefix = folder.removeprefix("gs://").partition("/")
    bucket = client.bucket(name)
    check((bucket.exists(), client.bucket("misspelled").exists()), (True, False))
    blob = bucket.blob(f"{prefix}/{ODD}")
    blob.upload_from_string(CONTENT)
    check(blob.download_as_bytes(), CONTENT)
    check(blob.download_as_bytes(start=1000, end=1009), CONTENT[1000:1010])
    blob.rewrite(blob)
    bucket.rename_blob(blob, f"{prefix}/left.bin")
    big = bucket.blob(f"{prefix}/big", chunk_size=1 << 18)  # resumed piece by piece
    with big.open("wb") as file:
        file.write(CONTENT)
    check(big.download_as_bytes(), CONTENT)
    both = bucket.blob(f"{prefix}/both")
    both.compose([big, bucket.blob(f"{prefix}/left.bin")])
    check(both.size, 2 * len(CONTENT))
    check([found.name for found in client.list_blobs(name, prefix=f"{prefix}/b")], [f"{prefix}/big", f"{prefix}/both"])
    with client.batch():
        big.delete()
        both.delete()
    check([found.name for found in client.list_blobs(name, prefix=prefix)], [f"{prefix}/left.bin"])


def array_record(folder: str) -> None:
    from array_record.python import array_record_module
    from google.cloud import storage

    with tempfile.TemporaryDirectory() as temporary:
        path = pathlib.Path(temporary, "records")
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for number in range(100):
            writer.write(b"%d" % number)
        writer.close()
        name, _, prefix = folder.removeprefix("gs://").partition("/")
        storage.Client().bucket(name).blob(f"{prefix}/left.bin").upload_from_filename(path)
    reader = array_record_module.ArrayRecordReader(f"{folder}/left.bin")
    check(reader.read([7, 93]), [b"7", b"93"])


CLIENTS: dict[str, Callable[[str], None]] = {
    "tensorflow": tensorflow,
    "tensorstore": tensorstore,
    "google": google,
    "array_record": array_record,
}

if __name__ == "__main__":
    CLIENTS[sys.argv[1]](sys.argv[2])
    sys.stdout.flush()
    os._exit(0)  # without TensorFlow's seconds of cleaning up
