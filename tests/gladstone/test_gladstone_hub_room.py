"""The room for a base that is downloaded is checked before the download: against a stand-in for the Hub on loopback."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

SIZES = {"config.json": 20, "model.safetensors": 10**18}
COMMIT = "c" * 40
CODE = """
from gladstone.commands.progress import Silent
from gladstone.models.base_model import resolve_base
print(resolve_base("owner/large", Silent()))
"""


class Hub(BaseHTTPRequestHandler):
    """A Hub with one model, whose weights are larger than any disk."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(f"GET {self.path}")
        if "/revision/" in self.path:
            files = [{"rfilename": name, "size": size} for name, size in SIZES.items()]
            self._answer({"id": "owner/large", "modelId": "owner/large", "sha": COMMIT, "siblings": files})
        elif "/tree/" in self.path:
            self._answer([
                {"type": "file", "path": name, "size": size, "oid": "a" * 40} for name, size in SIZES.items()
            ])  # fmt: skip
        else:
            self.send_error(404)

    def do_HEAD(self) -> None:
        self.asked.append(f"HEAD {self.path}")
        size = SIZES.get(self.path.rpartition("/")[2])
        self.send_response(200 if size is not None else 404)
        self.send_header("ETag", '"' + "e" * 40 + '"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(size or 0))
        self.end_headers()

    def _answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    Hub.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_base_that_does_not_fit_on_the_disk_is_refused_before_it_is_downloaded(
    hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    address = f"http://127.0.0.1:{hub.server_address[1]}"
    environment = os.environ | {
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path),
        "HF_TOKEN": "",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert "no space: the download of owner/large needs 1000000000.00 GB, " in last, done.stderr
    assert str(tmp_path / "hub") in last
    assert "HF_HOME" in last
    assert not any(line.startswith("GET") and "/resolve/" in line for line in Hub.asked)
    assert list(tmp_path.rglob("*.safetensors")) == []
