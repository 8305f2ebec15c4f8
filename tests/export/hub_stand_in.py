"""A stand-in for the parts of the Hub's HTTP interface that an upload needs, on this machine."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = 1000  # bytes from which a file goes up by itself


@dataclass
class Hub:
    """What the stand-in holds, and what was sent to it."""

    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)  # large files by sha256
    files: dict[str, bytes] = field(default_factory=dict)  # of the commit
    sent: list[str] = field(default_factory=list)  # sha256 of each large file that arrived
    heads: list[str] = field(default_factory=list)  # cards whose head was to be checked
    private: bool | None = None
    commits: int = 0
    refuse: int | None = None  # status for every request
    break_after: int | None = None  # large files after which the line goes dead


@contextmanager
def hub() -> Iterator[Hub]:
    """The stand-in, until the block ends."""
    state = Hub()
    handler = type("Handler", (_Handler,), {"hub": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(404, {})

    def do_PUT(self) -> None:
        data, hub = self._body(), self.hub
        if hub.break_after is not None and len(hub.sent) >= hub.break_after:
            self.close_connection = True
            self.connection.close()
            return
        digest = hashlib.sha256(data).hexdigest()
        assert self.path == f"/upload/{digest}"
        hub.objects[digest] = data
        hub.sent.append(digest)
        self._answer(200, {})

    def do_POST(self) -> None:
        data, hub = self._body(), self.hub
        if hub.refuse:
            self._answer(hub.refuse, {"error": "not yours"})
        elif self.path == "/api/repos/create":
            hub.private = json.loads(data).get("visibility") == "private"
            self._answer(200, {"url": f"{hub.url}/owner/name", "id": "owner/name"})
        elif self.path == "/api/validate-yaml":  # the head of a model card
            hub.heads.append(json.loads(data)["content"])
            self._answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [{"path": each["path"], "uploadMode": "lfs" if each["size"] >= LARGE else "regular",
                      "shouldIgnore": False} for each in json.loads(data)["files"]]  # fmt: skip
            self._answer(200, {"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = []
            for each in json.loads(data)["objects"]:
                href = {"href": f"{hub.url}/upload/{each['oid']}"}
                actions = {} if each["oid"] in hub.objects else {"actions": {"upload": href}}
                objects.append({"oid": each["oid"], "size": each["size"]} | actions)
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            self._commit(data)
            self._answer(200, {"commitUrl": f"{hub.url}/owner/name/commit/1", "commitOid": "1", "success": True})
        else:
            self._answer(404, {})

    def _commit(self, data: bytes) -> None:
        self.hub.commits += 1
        for line in data.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.hub.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.hub.files[value["path"]] = self.hub.objects[value["oid"]]

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
