"""Real servers on loopback for the tests of the stores, which record every answer they give.

`s3_server` runs moto's S3 in a process of its own, `http_server` a static server with range
requests in a thread. `python -m tests.servers LOG` is the process that `s3_server` starts.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUCKET = "volumes"


@dataclass(frozen=True)
class Answer:
    """One answer of a server.

    Attributes
    ----------
    key : str
        The object asked for, without the bucket; it begins with "/" where the bucket is meant.
    requested : str
        The Range header, empty if all was asked for.
    start, size_bytes : int
        Where the body that was sent begins in the object, and its length.
    """

    method: str
    key: str
    requested: str
    status: int
    start: int
    size_bytes: int


class Recorder(ABC):
    """A server that knows what it answered."""

    @abstractmethod
    def answers(self) -> list[Answer]:
        """Return the answers since the last `forget`, in their order."""

    @abstractmethod
    def forget(self) -> None:
        """Start a new record."""

    def reads(self) -> list[Answer]:
        """Return the answers that sent objects, whole or in part, since the last `forget`."""
        return [
            answer
            for answer in self.answers()
            if answer.status in (200, 206) and answer.size_bytes and not answer.key.startswith("/")
        ]


@dataclass(frozen=True)
class S3(Recorder):
    """A running S3-compatible server with one bucket."""

    endpoint: str
    log: Path

    def url(self, key: str) -> str:
        """Return the fsspec URL of a key."""
        return f"s3://{BUCKET}/{key}"

    @property
    def storage_options(self) -> dict[str, str]:
        """What s3fs needs beside the URL."""
        return {"key": "test", "secret": "test", "endpoint_url": self.endpoint}

    @property
    def environment(self) -> dict[str, str]:
        """The same as environment variables, which every AWS client reads."""
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    @property
    def obstore_options(self) -> dict[str, object]:
        """Keywords of `obstore.store.S3Store`, beside the bucket and the prefix."""
        return {
            "access_key_id": "test",
            "secret_access_key": "test",
            "region": "us-east-1",
            "endpoint": self.endpoint,
            "client_options": {"allow_http": True},
        }

    def upload(self, folder: Path, key: str) -> None:
        """Put the files of a folder under a key."""
        for path in (path for path in sorted(folder.rglob("*")) if path.is_file()):
            self.put(f"{key}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def put(self, key: str, body: bytes) -> None:
        """Put one object."""
        _send("PUT", f"{self.endpoint}/{BUCKET}/{urllib.parse.quote(key)}", body)

    def answers(self) -> list[Answer]:
        lines = self.log.read_text().splitlines()
        return [Answer(**json.loads(line)) for line in lines]

    def forget(self) -> None:
        self.log.write_text("")


@contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    """Run an S3-compatible server with an empty bucket; its record lies in `folder`."""
    log = folder / "answers.jsonl"
    log.touch()
    command = [sys.executable, "-m", "tests.servers", str(log)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            server = S3(f"http://127.0.0.1:{int(process.stdout.readline())}", log)
            _send("PUT", f"{server.endpoint}/{BUCKET}", b"")
            server.forget()
            yield server
        finally:
            process.terminate()


def _send(method: str, url: str, body: bytes) -> None:
    headers = {"Content-Type": "application/octet-stream"}
    request = urllib.request.Request(url, data=body, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.status == 200


def _serve_s3(log: Path) -> None:
    """Serve S3 until the process is ended, with one JSON line in `log` for every answer."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = DomainDispatcherApplication(create_backend_app)
    lock = threading.Lock()

    def recorded(environ: dict, start_response: Callable) -> object:
        def start(status: str, headers: list[tuple[str, str]], *rest: object) -> object:
            named = {name.lower(): value for name, value in headers}
            answer = Answer(
                environ["REQUEST_METHOD"],
                urllib.parse.unquote(environ["PATH_INFO"]).removeprefix(f"/{BUCKET}/"),
                environ.get("HTTP_RANGE", ""),
                int(status.split()[0]),
                _first_byte(named.get("content-range", "")),
                0 if environ["REQUEST_METHOD"] == "HEAD" else int(named.get("content-length", 0)),
            )
            # Before anything is sent, so that a client that has its answer finds it recorded.
            with lock, log.open("a") as stream:
                stream.write(json.dumps(asdict(answer)) + "\n")
            return start_response(status, headers, *rest)

        return application(environ, start)

    server = make_server("127.0.0.1", 0, recorded, threaded=True)
    print(server.server_port, flush=True)
    server.serve_forever()


def _first_byte(content_range: str) -> int:
    found = re.match(r"bytes (\d+)-", content_range)
    return int(found[1]) if found else 0


@dataclass(frozen=True)
class Http(Recorder):
    """A running static server."""

    url: str
    record: list[Answer]

    def answers(self) -> list[Answer]:
        return list(self.record)

    def forget(self) -> None:
        self.record.clear()


@contextmanager
def http_server(folder: Path) -> Iterator[Http]:
    """Serve the files of a folder, by ranges where they are asked for."""
    record: list[Answer] = []
    handler = partial(_RangeHandler, record=record, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield Http(f"http://127.0.0.1:{server.server_port}", record)
        finally:
            server.shutdown()
            thread.join()


class _RangeHandler(SimpleHTTPRequestHandler):
    """GET and HEAD of files, whole or one range."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments: object, record: list[Answer], **options: object) -> None:
        self.record = record
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        requested = self.headers.get("Range", "")
        if not path.is_file():
            self._answer(404, b"", requested)
            return
        content = path.read_bytes()
        if not requested:
            self._answer(200, content, requested)
            return
        start, stop = parse_range(requested, len(content))
        if start >= stop:
            self._answer(416, b"", requested)
            return
        place = f"bytes {start}-{stop - 1}/{len(content)}"
        self._answer(206, content[start:stop], requested, place)

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes, requested: str, place: str = "") -> None:
        sent = b"" if self.command == "HEAD" else body
        key = urllib.parse.unquote(self.path).lstrip("/")
        start = _first_byte(place)
        self.record.append(Answer(self.command, key, requested, status, start, len(sent)))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        if place:
            self.send_header("Content-Range", place)
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: object) -> None:
        """Keep quiet: the answers are recorded."""


def parse_range(requested: str, size_bytes: int) -> tuple[int, int]:
    """Return start and stop of one byte range; they are equal where nothing can be sent."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", requested)
    if found is None or found[0] == "bytes=-":
        return 0, 0
    first, last = found[1], found[2]
    if not first:
        return max(0, size_bytes - int(last)), size_bytes
    stop = int(last) + 1 if last else size_bytes
    return int(first), min(stop, size_bytes)


if __name__ == "__main__":
    _serve_s3(Path(sys.argv[1]))
