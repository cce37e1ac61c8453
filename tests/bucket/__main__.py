"""A fake Google Cloud Storage on 127.0.0.1: python -m tests.bucket --state DIR --bucket b --load DIR=b/tfds

`source DIR/env.sh` brings the clients of a shell to it. See tests/bucket/fake_bucket.py for tests.
"""

import argparse
import os
import pathlib
import sys
import threading

from tests.bucket import certificates
from tests.bucket.admin import Admin, load
from tests.bucket.client_environment import client_environment
from tests.bucket.server import Server


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bucket", description=__doc__)
    parser.add_argument("--state", type=pathlib.Path, required=True, help="a folder for certificates, env.sh and url")
    parser.add_argument("--port", type=int, default=0, help="by default any that is free; it is in the file url")
    parser.add_argument("--bucket", action="append", help="a bucket that is there; the flag may be repeated")
    parser.add_argument("--load", action="append", default=[], metavar="DIR=BUCKET/PREFIX", help="files to begin with")
    parser.add_argument("--latency_ms", type=float, default=0, help="how long every request waits")
    parser.add_argument("--with_stdin", action="store_true", help="end when standard input ends, as with its parent")
    return parser.parse_args()


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    arguments = _arguments()
    state = arguments.state.resolve()
    state.mkdir(parents=True, exist_ok=True)
    authority, certificate = certificates.make(state)
    admin = Admin(arguments.bucket or ["bucket"])
    admin.world.faults.latency_ms = arguments.latency_ms
    for pair in arguments.load:
        folder, _, target = pair.partition("=")
        bucket, _, prefix = target.removeprefix("gs://").partition("/")
        load(admin.world.store, pathlib.Path(folder), bucket, prefix)
    server = Server(arguments.port, certificate, admin)
    environment = client_environment(server.url, authority)
    (state / "env.sh").write_text("".join(f"export {name}='{value}'\n" for name, value in environment.items()))
    if arguments.with_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    (state / "url").write_text(server.url)
    print(f"serving on {server.url}; source {state / 'env.sh'}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
