"""A headless Chromium that opens the page of this folder and hands back what it found."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlencode

PAGES = Path(__file__).parent
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic",
    "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-extensions", "--mute-audio",
)  # fmt: skip


def find_chromium() -> str | None:
    """Return the path of a Chromium or Chrome of the system."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


def open_page(chromium: str, profile: Path, host: str = "127.0.0.1", **query: object) -> dict:
    """Open `page.html` with a query and return the JSON that it posts.

    Parameters
    ----------
    chromium : str
    profile : Path
        An empty folder.
    host : str
        Name under which the page is loaded; in this browser it means the loopback.
    **query
        A list gives its name once per item.
    """
    results: queue.Queue[dict] = queue.Queue()
    handler = partial(_Handler, results=results, directory=str(PAGES))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        page = f"http://{host}:{server.server_port}/page.html?{urlencode(query, doseq=True)}"
        options = [f"--user-data-dir={profile}", "--remote-debugging-port=0"]
        if host != "127.0.0.1":
            options.append(f"--host-resolver-rules=MAP {host} 127.0.0.1")
        browser = subprocess.Popen(
            [chromium, *_FLAGS, *options, page],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            return results.get(timeout=60)
        finally:
            browser.terminate()
            browser.wait(20)
            server.shutdown()
            thread.join()


class _Handler(SimpleHTTPRequestHandler):
    """Serves the page and takes its result."""

    def __init__(self, *arguments: object, results: queue.Queue, **options: object) -> None:
        self.results = results
        super().__init__(*arguments, **options)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        self.results.put(json.loads(body))

    def log_message(self, *_: object) -> None:
        """Keep quiet."""
