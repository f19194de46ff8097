"""What both fakes share: a server of this process, and objects in a dict.

There is one bucket, `bucket`. The bucket `closed` exists and gives nothing; there is no
other.
"""

import http.server
import threading
import urllib.parse
from typing import NamedTuple

BUCKET, CLOSED = "bucket", "closed"


class Request(NamedTuple):
    """A request over HTTP; `path` is without its host, `query` is decoded."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


class Reply(NamedTuple):
    status: int
    body: bytes = b""
    headers: dict[str, str] = {}


class FakeStore:
    """A server, until it is closed.

    Attributes:
      url: Where it listens.
      objects: Content by name.
      versions: How often each name was written.
      requests: What was asked, as `METHOD path`.
    """

    def __init__(self):
        self.objects: dict[str, bytes] = {}
        self.versions: dict[str, int] = {}
        self.requests: list[str] = []
        self.lock = threading.RLock()
        store = self

        class Handler(_Handler):
            def answer(self, request: Request) -> Reply:
                store.requests.append(f"{request.method} {request.path}")
                with store.lock:
                    return store.answer(request)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # a client that went away
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def answer(self, request: Request) -> Reply:
        raise NotImplementedError

    def put(self, name: str, content: bytes) -> None:
        self.objects[name] = content
        self.versions[name] = self.versions.get(name, 0) + 1

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def listed(self, query: dict[str, str]) -> tuple[list[str], list[str]]:
        """Returns names that begin with a prefix, and the folders among them."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        names, folders = [], set()
        for name in sorted(self.objects):
            if not name.startswith(prefix):
                continue
            head, mark, _ = name[len(prefix) :].partition(delimiter or "\0")
            if mark:
                folders.add(f"{prefix}{head}{mark}")
            else:
                names.append(name)
        return names, sorted(folders)


def part_of(content: bytes, request: Request) -> Reply:
    """Returns the bytes of an object that a request asks for."""
    span = request.headers.get("range")
    if span is None:
        return Reply(200, content)
    first, _, last = span.removeprefix("bytes=").partition("-")
    start = int(first) if first else max(len(content) - int(last), 0)
    stop = min(int(last) + 1 if first and last else len(content), len(content))
    if start >= len(content):
        return Reply(416)
    where = {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
    return Reply(206, content[start:stop], where)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def answer(self, request: Request) -> Reply:
        raise NotImplementedError

    def _handle(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        reply = self.answer(Request(self.command, url.path, query, headers, body))
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        has_body = reply.status not in (204, 304)
        if has_body:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if has_body and self.command != "HEAD":
            self.wfile.write(reply.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle
