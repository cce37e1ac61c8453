"""Weights downloaded over HTTP, from a server that this file starts."""

import contextlib
import http.client
import http.server
import io
import threading

import pytest
from random_models import make_model, make_params, same

from mixer.runtime.errors import UserError
from mixer.transfer import download, npz, published
from mixer.transfer.loading import load

PARAMS = make_params(make_model(), seed=1)


def npz_bytes(params):
    file = io.BytesIO()
    npz.save_params(file, params)
    return file.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves whole.npz, endless.npz, and cut.npz, which is shorter than its Content-Length. Records the requests."""

    def do_GET(self):
        self.server.asked.append(self.path)
        content = npz_bytes(PARAMS)
        if "missing" in self.path:
            self.send_error(404)
            return
        if "endless" in self.path:
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(bytes(2**16))
        self.send_response(200)
        if "unsized" not in self.path:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if "cut" in self.path else content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        server.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["whole.npz", "unsized.npz"])
def test_a_download_is_kept_in_the_cache(server, tmp_path, name):
    for _ in range(2):
        found = load(f"{server.address}/models/{name}")
        assert same(found.params, PARAMS)
        assert found.source == f"{server.address}/models/{name}"
    assert server.asked == [f"/models/{name}"]
    assert files(tmp_path) == [f"mixer/127.0.0.1:{server.server_port}/models/{name}"]


def test_a_published_name_is_downloaded_from_its_address(server, monkeypatch):
    monkeypatch.setitem(published.PUBLISHED, "B/16-i1k", f"{server.address}/whole.npz")
    found = load("B/16-i1k")
    assert same(found.params, PARAMS)
    assert (found.source, server.asked) == ("B/16-i1k", ["/whole.npz"])


def test_the_default_cache_is_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / ".cache" / "mixer"


def test_a_broken_connection_is_reported_and_leaves_no_file(server, tmp_path):
    whole = len(npz_bytes(PARAMS))
    with pytest.raises(UserError) as caught:
        load(f"{server.address}/cut.npz")
    assert str(caught.value) == (
        f"{server.address}/cut.npz cannot be read (the connection ended after {whole // 2:,} of {whole:,} bytes; try "
        "again)"
    )
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["endless.npz", "whole.npz"])
def test_a_download_is_limited_in_size(server, tmp_path, monkeypatch, name):
    """Either the server never stops, or its Content-Length is above the limit."""
    monkeypatch.setattr(download, "_MOST_BYTES", len(npz_bytes(PARAMS)) - 1)
    with pytest.raises(UserError) as caught:
        load(f"{server.address}/{name}")
    assert str(caught.value) == (
        f"{server.address}/{name} cannot be read (it is larger than {download._MOST_BYTES:,} bytes, the most that is "
        "downloaded; download it yourself, and give the path of the file)"
    )
    assert files(tmp_path) == []


def test_a_download_that_says_it_is_too_large_is_not_started(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_MOST_BYTES", 10)
    monkeypatch.setattr(http.client.HTTPResponse, "read", lambda *_: pytest.fail("was begun"))
    with pytest.raises(UserError, match="larger than 10 bytes"):
        load(f"{server.address}/whole.npz")


@pytest.mark.parametrize("path", ["/../../../out/m.npz", "/models/../../../../out/m.npz"])
def test_an_address_that_leads_out_of_the_cache_is_refused(server, tmp_path, monkeypatch, path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError) as caught:
        load(f"{server.address}{path}")
    expected = "cannot be read (expected an address with a host, and without ..)"
    assert str(caught.value) == f"{server.address}{path} {expected}"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"expected an address with a host"):
        load(f"https://{tmp_path}/out/m.npz")
    assert list(tmp_path.iterdir()) == []
    assert server.asked == []


def test_a_missing_address_is_reported_and_leaves_no_file(server, tmp_path):
    with pytest.raises(
        UserError, match=rf"^{server.address}/missing.npz cannot be read \(HTTP Error 404: Not Found\)$"
    ):
        load(f"{server.address}/missing.npz")
    assert files(tmp_path) == []


def test_a_server_that_does_not_answer_is_reported(server):
    address = server.address
    server.server_close()
    with pytest.raises(
        UserError, match=rf"^{address}/whole.npz cannot be read \([^\n]*[Cc]onnection[^\n]*; without a network"
    ):
        load(f"{address}/whole.npz")
