"""A local server of chat completions that misbehaves by a script, and records the requests it gets."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.served import served

MAX_HOLD_S = 20.0
"""Longest time for which a reply is held back, so that a failing test ends."""


def completion(
    text: str | None, usage: tuple[int, int] | None = (100, 20), finish_reason: str = "stop", **message: Any
) -> dict[str, Any]:
    """Return the body of a chat completion with this text and these counts of prompt and answer tokens."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, **message},
        "finish_reason": finish_reason,
    }
    body = {"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice]}
    if usage:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return body


def error(message: str, **fields: Any) -> dict[str, Any]:
    """Return the body of an error, with some fields changed."""
    return {"error": {"message": message, "type": "some_error", "param": None, "code": None, **fields}}


@dataclass(frozen=True)
class Act:
    """What the server does with one request. Without a `body` it replies 'answer to <text of the question>'."""

    status: int = 200
    body: Mapping[str, Any] | bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    hold: threading.Event | None = None
    """Event that the reply waits for."""
    drop: str = ""
    """When the connection is reset: 'before' the reply or in the 'middle' of the body."""
    chunked: bool = False
    on_request: Callable[[], object] | None = None
    """Called when the request has arrived."""


@dataclass
class Request:
    """A request that the server got. `text` is the text of its question."""

    text: str
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    arrived_s: float


class Server(ThreadingHTTPServer):
    """A server whose `script` has the acts for the first, second ... request of a question, by its text.

    Requests beyond the script get a normal reply.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()
        self.reset({})

    def reset(self, script: Mapping[str, Sequence[Act]], now_s: Callable[[], float] = lambda: 0.0) -> None:
        """Set the script and the clock of `arrived_s`, and forget all requests."""
        self.script = {text: list(acts) for text, acts in script.items()}
        self.now_s = now_s
        self.requests: list[Request] = []
        self.in_flight = self.max_in_flight = 0

    @property
    def base_url(self) -> str:
        """Address for `base_url` of the engine."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def counts(self) -> dict[str, int]:
        """Return the number of requests by the text of their question."""
        texts = [request.text for request in self.requests]
        return {text: texts.count(text) for text in texts}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that close the connection: tests do that on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][-1]["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        server = self.server
        with server.lock:
            server.requests.append(Request(text, body, dict(self.headers), server.now_s()))
            acts = server.script.get(text)
            act = acts.pop(0) if acts else Act()
            server.in_flight += 1
            server.max_in_flight = max(server.max_in_flight, server.in_flight)
        if act.on_request:
            act.on_request()
        if act.hold:
            act.hold.wait(MAX_HOLD_S)
        # Before the reply: the client may send its next request as soon as it has read this reply.
        with server.lock:
            server.in_flight -= 1
        if self.path != "/v1/chat/completions":
            act = Act(404, {"detail": "Not Found"})
        if act.drop != "before":
            reply = completion(f"answer to {text}") if act.body is None else act.body
            self._reply(act, reply if isinstance(reply, bytes) else json.dumps(reply).encode())
        if act.drop:
            self._reset()

    def _reply(self, act: Act, data: bytes) -> None:
        self.send_response_only(act.status)  # without a Date header, which scripts may set
        for name, value in act.headers.items():
            self.send_header(name, value)
        length = ("Transfer-Encoding", "chunked") if act.chunked else ("Content-Length", str(len(data)))
        self.send_header(*length)
        self.end_headers()
        sent = data[: len(data) // 2] if act.drop else data
        if not act.chunked:
            self.wfile.write(sent)
            return
        for start in range(0, len(sent), 7):
            chunk = sent[start : start + 7]
            self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        if not act.drop:
            self.wfile.write(b"0\r\n\r\n")

    def _reset(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Run a server for the length of the block."""
    server = Server()
    with served(server):
        yield server
