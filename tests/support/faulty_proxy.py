"""A proxy in front of an HTTP server of this machine, which lets requests go wrong as a test says."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.served import served

SLOW_S = 4.0
"""Seconds until a slow answer begins: more than the 3 s after which the client of S3 gives up by default."""

XML = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>It is said so.</Message></Error>"
ANSWERS = {
    "busy": (503, XML % b"SlowDown"),
    "broken": (500, XML % b"InternalError"),
    "clock": (403, XML % b"RequestTimeTooSkewed"),
}

Fault = str | None
"""One of `ANSWERS`, `slow`, `refuse` (no answer), `drop` (half an answer), or None for an answer as it should be."""


class FaultyProxy(ThreadingHTTPServer):
    """A proxy to a port. `fault_of` returns what goes wrong with a request, by its number, method and path."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, upstream: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.fault_of: Callable[[int, str, str], Fault]
        self.faults: Counter[str]
        """Number of faults so far by kind, and of `requests`."""
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Let nothing go wrong from here on, and forget what did."""
        self.fault_of, self.faults = lambda number, method, path: None, Counter()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def next_fault(self, method: str, path: str) -> Fault:
        """Count a request and return what is to go wrong with it."""
        with self._lock:
            number = self.faults["requests"]
            self.faults["requests"] += 1
            fault = self.fault_of(number, method, path)
            if fault:
                self.faults[fault] += 1
        return fault


class _Handler(BaseHTTPRequestHandler):
    server: FaultyProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client has gone
            super().handle()

    def _pass_on(self) -> None:
        body = self._body()
        fault = self.server.next_fault(self.command, self.path)
        if fault == "refuse":
            self._close()
        elif fault in ANSWERS:
            status, data = ANSWERS[fault]
            self._answer(status, {}, data)
        else:
            if fault == "slow":
                time.sleep(SLOW_S)
            try:
                status, headers, data = self._ask(body)
            except (OSError, http.client.HTTPException):  # the server restarts
                self._close()
                return
            self._answer(status, headers, data, drop=fault == "drop")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

    def _body(self) -> bytes:
        """Return the body as it comes, with the frames of its chunks if it has any."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        frames, size = [], -1
        while size:
            line = self.rfile.readline()
            size = int(line.partition(b";")[0], 16)
            frames += [line, self.rfile.read(size + 2)]
        return b"".join(frames)

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        with contextlib.closing(connection):
            # The signature covers the address that the client knows, and all its headers.
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "expect":
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            headers = {name: value for name, value in answer.getheaders() if name.lower() != "transfer-encoding"}
            return answer.status, headers, answer.read()

    def _answer(self, status: int, headers: dict[str, str], data: bytes, drop: bool = False) -> None:
        self.send_response_only(status)
        headers = {name: value for name, value in headers.items() if name.lower() != "connection"}
        length = headers.pop("Content-Length", str(len(data)))
        for name, value in {**headers, "Content-Length": length}.items():
            self.send_header(name, value)
        self.end_headers()
        if drop:
            self.wfile.write(data[: len(data) // 2])
            self._close()
        elif self.command != "HEAD":
            self.wfile.write(data)

    def _close(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def proxy_to(port: int) -> Iterator[FaultyProxy]:
    """Run a proxy to a port of this machine while the block runs."""
    proxy = FaultyProxy(port)
    with served(proxy):
        yield proxy
