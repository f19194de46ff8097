"""Answers as Google Cloud Storage does, over its JSON API.

It knows what gcsfs, google-cloud-storage and TensorStore ask for.
"""

import json
import urllib.parse
from typing import Any

from tests.cloud.store import BUCKET, CLOSED, FakeStore, Reply, Request, part_of


class FakeGcs(FakeStore):
    def answer(self, request: Request) -> Reply:
        if request.path.startswith("/batch/"):
            return self._batch(request)
        parts = request.path.split("/b/", 1)[1].split("/")
        if parts[0] == CLOSED:
            return _error(403, "caller does not have storage.objects.list access")
        if parts[0] != BUCKET:
            return _error(404, "The specified bucket does not exist.")
        if len(parts) == 1:
            return _json({"kind": "storage#bucket", "name": BUCKET})
        if request.path.startswith("/upload/"):
            return self._upload(request)
        if len(parts) == 2:
            names, folders = self.listed(request.query)
            return _json({"items": [*map(self._about, names)], "prefixes": folders})
        name = urllib.parse.unquote(parts[2])
        if "rewriteTo" in parts:
            target = urllib.parse.unquote(parts[-1])
            self.put(target, self.objects[name])
            return _json({"done": True, "resource": self._about(target)})
        return self._object(request, name)

    def _object(self, request: Request, name: str) -> Reply:
        if name not in self.objects:
            return _error(404, f"No such object: {BUCKET}/{name}")
        if not self._meets(request, name):
            return _error(412, "At least one of the pre-conditions did not hold.")
        if request.method == "DELETE":
            del self.objects[name]
            return Reply(204)
        if request.query.get("alt") != "media":
            return _json(self._about(name))
        generation = str(self.versions[name])
        if request.query.get("ifGenerationNotMatch") == generation:
            return Reply(304)
        reply = part_of(self.objects[name], request)
        return reply._replace(headers=reply.headers | {"x-goog-generation": generation})

    def _upload(self, request: Request) -> Reply:
        name, content = request.query.get("name"), request.body
        if request.query["uploadType"] == "multipart":
            about, content = _parts(request)
            name = json.loads(about)["name"]
        assert name is not None
        if request.query["uploadType"] == "resumable" and "id" not in request.query:
            query = urllib.parse.urlencode(request.query | {"id": "1"})
            return Reply(200, b"", {"Location": f"{self.url}{request.path}?{query}"})
        if not self._meets(request, name):
            return _error(412, "At least one of the pre-conditions did not hold.")
        self.put(name, content)
        return _json(self._about(name))

    def _batch(self, request: Request) -> Reply:
        """Answers several requests to delete that come as one."""
        replies = []
        for part in _parts(request):
            method, url = part.split()[:2]
            path = urllib.parse.urlsplit(url.decode()).path
            reply = self.answer(Request(method.decode(), path, {}, {}, b""))
            replies.append(
                "--reply\r\nContent-Type: application/http\r\n\r\n"
                f"HTTP/1.1 {reply.status} -\r\n\r\n{reply.body.decode()}\r\n"
            )
        headers = {"Content-Type": "multipart/mixed; boundary=reply"}
        return Reply(200, ("".join(replies) + "--reply--").encode(), headers)

    def _meets(self, request: Request, name: str) -> bool:
        generation = self.versions[name] if name in self.objects else 0
        return request.query.get("ifGenerationMatch") in (None, str(generation))

    def _about(self, name: str) -> dict[str, Any]:
        generation = str(self.versions[name])
        return {
            "bucket": BUCKET,
            "name": name,
            "id": f"{BUCKET}/{name}/{generation}",
            "generation": generation,
            "metageneration": "1",
            "size": str(len(self.objects[name])),
            "etag": generation,
            "updated": f"2026-01-01T00:00:{self.versions[name] % 60:02}.000Z",
            "storageClass": "STANDARD",
        }


def _parts(request: Request) -> list[bytes]:
    """Returns the parts of a multipart body, each without its headers."""
    boundary = request.headers["content-type"].partition("boundary=")[2].strip("\"' ")
    parts = request.body.split(f"--{boundary}".encode())[1:-1]
    contents = []
    for part in parts:
        end = b"\r\n" if part.startswith(b"\r\n") else b"\n"
        contents.append(part.partition(2 * end)[2].removesuffix(end))
    return contents


def _json(value: Any) -> Reply:
    headers = {"Content-Type": "application/json; charset=UTF-8"}
    return Reply(200, json.dumps(value).encode(), headers)


def _error(code: int, message: str) -> Reply:
    error = {"code": code, "message": message, "errors": [{"message": message}]}
    return _json({"error": error})._replace(status=code)
