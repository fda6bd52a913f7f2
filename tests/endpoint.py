"""HTTP endpoints that answer as servers of models do."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Replies(BaseHTTPRequestHandler):
    """What a handler of requests needs to answer in JSON, whole or token by token."""

    def asked(self) -> dict[str, Any]:
        """What the request says."""
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def reply(self, content: dict[str, Any], status: int = 200) -> None:
        """Answer with all of it."""
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, pieces: Iterable[str], cut: bool = False) -> None:
        """Answer piece by piece; `cut` promises more than it sends."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        if cut:
            self.send_header("Content-Length", "100000")
        self.end_headers()
        for piece in pieces:
            chunk = {"id": "1", "choices": [{"index": 0, "text": piece}]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        if not cut:
            self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *arguments: object) -> None:
        """A test's output is no place for an access log."""


@contextlib.contextmanager
def listening(handler: type[Replies], **attributes: object) -> Iterator[ThreadingHTTPServer]:
    """A server on a free port of this machine; handlers read its attributes."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    for name, value in attributes.items():
        setattr(server, name, value)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
