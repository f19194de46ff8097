"""Answers as S3 does. It knows what s3fs and TensorStore ask for."""

import hashlib
import urllib.parse
from xml.etree import ElementTree

from tests.cloud.store import BUCKET, CLOSED, FakeStore, Reply, Request, part_of

SPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


class FakeS3(FakeStore):
    def answer(self, request: Request) -> Reply:
        path = urllib.parse.unquote(request.path).lstrip("/")
        bucket, _, name = path.partition("/")
        if bucket == CLOSED:
            return _error(403, "AccessDenied")
        if bucket != BUCKET:
            return _error(404, "NoSuchBucket")
        if "delete" in request.query:
            return self._delete_many(request.body)
        if not name:
            return self._list(request) if request.method == "GET" else Reply(200)
        if request.method == "PUT":
            return self._put(request, name)
        if name not in self.objects:
            return _error(404, "NoSuchKey")
        if request.method == "DELETE":
            del self.objects[name]
            return Reply(204)
        second = self.versions[name] % 60
        headers = {
            "ETag": _tag(self.objects[name]),
            "Last-Modified": f"Thu, 01 Jan 2026 00:00:{second:02} GMT",
        }
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Reply(304, b"", headers)
        reply = part_of(self.objects[name], request)
        return reply._replace(headers=reply.headers | headers)

    def _put(self, request: Request, name: str) -> Reply:
        content, before = request.body, self.objects.get(name)
        wanted = request.headers.get("if-match")
        if wanted and (before is None or _tag(before) != wanted):
            return _error(412, "PreconditionFailed")
        if request.headers.get("if-none-match") == "*" and before is not None:
            return _error(412, "PreconditionFailed")
        if "aws-chunked" in request.headers.get("content-encoding", ""):
            content = _unchunked(content)
        if source := request.headers.get("x-amz-copy-source"):
            content = self.objects[urllib.parse.unquote(source).split("/", 1)[1]]
        self.put(name, content)
        tag = _tag(content)
        if source:
            return _xml("CopyObjectResult", f"<ETag>{tag}</ETag>")
        return Reply(200, b"", {"ETag": tag})

    def _list(self, request: Request) -> Reply:
        names, folders = self.listed(request.query)
        found = [
            f"<Contents><Key>{name}</Key><Size>{len(self.objects[name])}</Size>"
            f"<ETag>{_tag(self.objects[name])}</ETag>"
            f"<LastModified>2026-01-01T00:00:{self.versions[name] % 60:02}.000Z"
            "</LastModified></Contents>"
            for name in names
        ]
        found += [
            f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>"
            for folder in folders
        ]
        about = f"<Name>{BUCKET}</Name><KeyCount>{len(found)}</KeyCount>"
        about += "<IsTruncated>false</IsTruncated>"
        return _xml("ListBucketResult", about + "".join(found))

    def _delete_many(self, body: bytes) -> Reply:
        deleted = []
        for key in ElementTree.fromstring(body).iter(f"{{{SPACE}}}Key"):
            self.objects.pop(key.text or "", None)
            deleted.append(f"<Deleted><Key>{key.text}</Key></Deleted>")
        return _xml("DeleteResult", "".join(deleted))


def _tag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def _xml(root: str, inside: str) -> Reply:
    text = f'<?xml version="1.0"?><{root} xmlns="{SPACE}">{inside}</{root}>'
    return Reply(200, text.encode(), {"Content-Type": "application/xml"})


def _error(status: int, code: str) -> Reply:
    text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
    return Reply(status, text.encode(), {"Content-Type": "application/xml"})


def _unchunked(body: bytes) -> bytes:
    """Returns the content of a body that is sent in signed chunks."""
    content = b""
    while body:
        head, _, body = body.partition(b"\r\n")
        size = int(head.split(b";")[0], 16)
        content, body = content + body[:size], body[size + 2 :]
        if not size:
            break
    return content
