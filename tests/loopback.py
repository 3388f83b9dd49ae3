"""Servers on loopback for tests: what stands between a client and a server and breaks things, and a scripted judge."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
# What happens to a call: None passes it on; a number is that status; a tuple adds headers and a body to it.
Fault = None | int | str | tuple[int, dict[str, str], Any]


class Proxy:
    """Passes calls on to a server, but for those that a fault waits for.

    Attributes:
        url: where it listens.
        faults: what happens to the next calls, first things first: a status, "cut", "hang" (until the client has given
            up), "nonsense", "broken" (JSON), or a status with headers and body.
        always: what happens to all calls once there are no faults left.
        bodies: of the calls that came.
        passed: of those that were answered.
        keys: the API keys that came with them.
        most: calls that were under way at one time.
    """

    def __init__(self, answer: Callable[[str, Body], Body]) -> None:
        self.answer = answer
        self.faults: list[Fault] = []
        self.always: Fault = None
        self.bodies: list[Body] = []
        self.passed: list[Body] = []
        self.keys: set[str] = set()
        self.delay, self.most, self.under_way = 0.0, 0, 0
        self.lock = threading.Lock()
        self.released = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                proxy.handle(self, {})

            def do_POST(self) -> None:
                proxy.handle(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        class HTTP(ThreadingHTTPServer):
            daemon_threads, block_on_close, request_queue_size = True, False, 64

            def handle_error(self, *_: object) -> None:
                pass

        self.http = HTTP(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def handle(self, handler: BaseHTTPRequestHandler, body: Body) -> None:
        with self.lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            self.bodies.append(body)
            self.keys.add(handler.headers.get("Authorization", ""))
            fault = self.faults.pop(0) if self.faults else self.always
        try:
            time.sleep(self.delay)
            self._answer(handler, body, fault)
        finally:
            with self.lock:
                self.under_way -= 1

    def _answer(self, handler: BaseHTTPRequestHandler, body: Body, fault: Fault) -> None:
        if fault == "cut":
            handler.send_response(200)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(b'{"choices": [')
            handler.close_connection = True
        elif fault == "hang":
            self.released.wait(20)
            handler.close_connection = True
        elif fault == "broken":
            send(handler, 200, b'{"choices": [')
        elif fault == "nonsense":
            send(handler, 200, json.dumps({"choices": []}).encode())
        elif isinstance(fault, tuple):
            send(handler, fault[0], json.dumps(fault[2]).encode(), fault[1])
        elif isinstance(fault, int):
            send(handler, fault, json.dumps({"error": {"message": f"fault {fault}"}}).encode())
        else:
            status, found = 200, {}
            try:
                found = self.answer(handler.path, body)
            except urllib.error.HTTPError as error:
                status, found = error.code, json.loads(error.read())
                error.close()
            if status == 200 and body:
                with self.lock:
                    self.passed.append(body)
            send(handler, status, json.dumps(found).encode())


def send(handler: BaseHTTPRequestHandler, status: int, payload: bytes, headers: dict[str, str] | None = None) -> None:
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(payload)))
    handler.end_headers()
    handler.wfile.write(payload)


@contextmanager
def listening(answer: Callable[[str, Body], Body]) -> Iterator[Proxy]:
    """A server that answers by a function of path and body, with faults where they are asked for."""
    proxy = Proxy(answer)
    thread = threading.Thread(target=proxy.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.released.set()
        proxy.http.shutdown()
        thread.join()
        proxy.http.server_close()


def forwarding(url: str) -> Callable[[str, Body], Body]:
    """Asks another server."""

    def answer(path: str, body: Body) -> Body:
        data = json.dumps(body).encode() if body else None
        target = url.removesuffix("/v1") + path
        request = urllib.request.Request(target, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            found: Body = json.loads(response.read())
            return found

    return answer


def saying(say: Callable[[list[Body]], str]) -> Callable[[str, Body], Body]:
    """A chat endpoint with one model, "scripted", that says what a function makes of the conversation."""

    def answer(path: str, body: Body) -> Body:
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": "scripted", "object": "model"}]}
        text = say(body["messages"])
        read = sum(len(turn["content"].split()) for turn in body["messages"])
        usage = {"prompt_tokens": read, "completion_tokens": len(text.split())}
        message = {"role": "assistant", "content": text}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "scripted",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": usage,
        }

    return answer
