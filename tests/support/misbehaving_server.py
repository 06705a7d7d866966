"""A chat completions server on this machine that misbehaves as a script says, and takes down what it saw."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LONGEST_S = 20.0
"""No reply is held back longer, so that a failing test ends."""


def completion(
    text: str | None, usage: tuple[int, int] | None = (100, 20), ended: str = "stop", **message: Any
) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": ended}
    counts = (
        {"usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}}
        if usage
        else {}
    )
    return {"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice], **counts}


def error(message: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "some_error", "param": None, "code": None, **fields}}


@dataclass(frozen=True)
class Act:
    """What is done with one request. Without a `body` it is answered with 'answer to <question>'."""

    status: int = 200
    body: Mapping[str, Any] | bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    hold: threading.Event | None = None
    """Waited for before anything is sent."""
    drop: str = ""
    """'before' or 'middle': the connection is reset without a reply, or after half of the body."""
    chunked: bool = False
    do: Callable[[], object] | None = None
    """Called when the request is there."""


@dataclass
class Seen:
    text: str
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    at_s: float


class Server(ThreadingHTTPServer):
    """`script[text]` are the acts for a question's first, second … request; after them, and without them, it behaves."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()
        self.reset({})

    def reset(self, script: Mapping[str, Sequence[Act]], now_s: Callable[[], float] = lambda: 0.0) -> None:
        self.script = {text: list(acts) for text, acts in script.items()}
        self.now_s = now_s
        self.seen: list[Seen] = []
        self.in_flight = self.most_in_flight = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def counts(self) -> dict[str, int]:
        """Requests by question."""
        texts = [seen.text for seen in self.seen]
        return {text: texts.count(text) for text in texts}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the game."""


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
            server.seen.append(Seen(text, body, dict(self.headers), server.now_s()))
            acts = server.script.get(text)
            act = acts.pop(0) if acts else Act()
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        if act.do:
            act.do()
        if act.hold:
            act.hold.wait(LONGEST_S)
        # Before the reply is out: the client may send its next request as soon as it has this one's.
        with server.lock:
            server.in_flight -= 1
        if self.path != "/v1/chat/completions":
            act = Act(404, {"detail": "Not Found"})
        if act.drop != "before":
            said = completion(f"answer to {text}") if act.body is None else act.body
            self._reply(act, said if isinstance(said, bytes) else json.dumps(said).encode())
        if act.drop:
            self._reset()

    def _reply(self, act: Act, data: bytes) -> None:
        self.send_response_only(act.status)  # without a Date, which scripts may want to say otherwise
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
            piece = sent[start : start + 7]
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if not act.drop:
            self.wfile.write(b"0\r\n\r\n")

    def _reset(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
