"""The standard network is there whole and checked, or not at all."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from softtrunc.metrics import cache_folder, fetch, inception_file

CONTENT = b"a network" * 300_000


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path != "/network.pt":
            self.send_error(404)
            return
        self.server.asked += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: self.server.cut])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("SOFTTRUNC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "INCEPTION_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.cut, server.asked = len(CONTENT), 0
        url = f"http://127.0.0.1:{server.server_port}/network.pt"
        monkeypatch.setattr(fetch, "INCEPTION_URL", url)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_it_is_fetched_once_and_then_found(server, tmp_path):
    path = inception_file()
    assert path == tmp_path / "cache" / "inception-2015-12-05.pt"
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert server.asked == 1
    assert inception_file() == path
    assert server.asked == 1


def test_a_wrong_file_is_not_kept(server, monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "INCEPTION_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"is not the standard network.*give --features PATH"):
        inception_file()
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_transfer_cut_short_is_not_kept(server, tmp_path):
    server.cut = 1_000_000
    with pytest.raises(ValueError, match="give --features PATH"):
        inception_file()
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_connection_it_is_said_what_to_do(server, monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "INCEPTION_URL", "http://127.0.0.1:1/network.pt")
    with pytest.raises(ValueError, match=r"fetching it failed .*refused") as caught:
        inception_file()
    message = str(caught.value)
    assert "95,607,719 bytes" in message
    assert str(tmp_path / "cache" / "inception-2015-12-05.pt") in message
    monkeypatch.setattr(
        fetch, "INCEPTION_URL", fetch.INCEPTION_URL.replace(":1/", f":{server.server_port}/x")
    )
    with pytest.raises(ValueError, match="Not Found"):
        inception_file()


def test_a_damaged_file_in_the_cache_is_named(server, tmp_path):
    path = inception_file()
    path.write_bytes(CONTENT[:100])
    with pytest.raises(ValueError, match="delete it, and it is fetched again"):
        inception_file()


def test_the_cache_is_where_people_put_theirs(monkeypatch, tmp_path):
    monkeypatch.setenv("SOFTTRUNC_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("SOFTTRUNC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "softtrunc"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "softtrunc"
