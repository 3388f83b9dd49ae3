"""HTTP: /v1/models, /v1/completions and /v1/chat/completions, as OpenAI's clients ask for them."""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from preftune.errors import PreftuneError
from preftune.serving.asked import Asked, RequestError, read
from preftune.serving.writer import Answering, Model, Writer, Written

LARGEST = 8 * 2**20  # bytes of a body
IDLE = 60.0  # seconds after which a connection that is silent is closed
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
ADAPTERS = {LOAD: ("lora_name", "lora_path"), UNLOAD: ("lora_name",)}
PIECE = re.compile(r"\s*\S+\s*")


class Server:
    """A model behind HTTP. As a context manager it serves in a thread of its own.

    Args:
        model: what answers: a model, or who writes in its place.
        host: address to listen on.
        port: port to listen on; 0: any that is free.

    Attributes:
        url: where the API begins.
        model: what answers.
        names: what clients may ask, when it began.

    Raises:
        PreftuneError: if it cannot listen there.
    """

    def __init__(self, model: Model | Answering, host: str = "127.0.0.1", port: int = 8000) -> None:
        try:
            self._http = _HTTP((host, port), _Handler)
        except (OSError, OverflowError) as error:
            told = getattr(error, "strerror", None) or error
            raise PreftuneError(f"cannot listen on {host}:{port} ({told}): name another --port or --host") from None
        self._http.writer = Writer(model) if isinstance(model, Model) else model
        self.model, self.names = model, self._http.writer.names
        self.url = f"http://{host}:{self._http.server_address[1]}/v1"
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Server:
        self._thread = threading.Thread(target=self.run, name="server", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        if self._thread is not None:
            self._thread.join()
        self.close()

    def run(self) -> None:
        """Serve until `KeyboardInterrupt`, or the end of the context."""
        self._http.serve_forever(poll_interval=0.1)

    def close(self) -> None:
        """Stop listening, and writing."""
        self._http.server_close()
        self._http.writer.close()


class _HTTP(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client that keeps its connection open does not keep the server from ending
    request_queue_size = 128
    writer: Answering

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of ours."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "preftune"
    timeout = IDLE
    server: _HTTP
    posts: ClassVar[dict[str, bool]] = {"/v1/completions": False, "/v1/chat/completions": True}

    def log_message(self, *_: object) -> None:
        """Nothing: what is asked is nobody else's business."""

    def do_GET(self) -> None:
        """GET /v1/models and /v1/models/NAME."""
        self._guarded(self._models)

    def do_POST(self) -> None:
        """POST /v1/completions and /v1/chat/completions."""
        self._guarded(self._complete)

    def _guarded(self, answer: Callable[[], None]) -> None:
        try:
            answer()
        except RequestError as error:
            self._send(error.status, error.body())
        except OSError:  # the client went away
            self.close_connection = True
        except Exception as error:  # whatever it is, who asked must hear of it
            self._send(500, RequestError(500, f"{type(error).__name__}: {error}").body())

    @property
    def _path(self) -> str:
        return self.path.partition("?")[0].rstrip("/")

    def _models(self) -> None:
        described = {
            name: {"id": name, "object": "model", "created": 0, "owned_by": "preftune"}
            for name in self.server.writer.names
        }
        if self._path == "/v1/models":
            self._send(200, {"object": "list", "data": list(described.values())})
        elif (name := self._path.removeprefix("/v1/models/")) in described:
            self._send(200, described[name])
        else:
            raise RequestError(404, f"there is nothing at {self._path[:80]}, expected /v1/models")

    def _complete(self) -> None:
        chat = self.posts.get(self._path)
        body = self._body()
        if self._path in ADAPTERS:
            self._adapter(body)
            return
        if chat is None:
            raise RequestError(404, f"there is nothing at {self._path[:80]}, expected {' or '.join(self.posts)}")
        writer = self.server.writer
        asked = read(body, chat, writer.names)
        written = writer.write(asked)
        if asked.stream:
            self._stream(asked, written)
        else:
            self._send(200, _whole(asked, written, asked.model))

    def _adapter(self, body: dict[str, Any]) -> None:
        """Load an adapter, or take one out, as clients of vLLM ask for it."""
        adapters = self.server.writer.adapters
        if adapters is None:
            raise RequestError(403, "adapters are not loaded here: start preftune serve with --adapters")
        for field in ADAPTERS[self._path]:
            if not isinstance(body.get(field), str) or not body[field]:
                raise RequestError(400, f"{field} is missing, expected text", field)
        if self._path == LOAD:
            adapters.load(body["lora_name"], body["lora_path"])
        else:
            adapters.unload(body["lora_name"])
        self._send(200, {"object": "adapter", "id": body["lora_name"]})

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.close_connection = True
            raise RequestError(411, "a request needs a Content-Length")
        if len(length) > 18 or int(length) > LARGEST:
            self.close_connection = True  # the rest of it is not read
            raise RequestError(413, f"the request has {length[:18]} bytes, expected at most {LARGEST:,}")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise RequestError(400, "the request is no JSON") from None
        if not isinstance(body, dict):
            raise RequestError(400, "the request is no JSON object")
        return body

    def _send(self, status: int, body: dict[str, Any]) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(payload)

    def _stream(self, asked: Asked, written: Written) -> None:
        """The answers as server-sent events: whole by then, and sent in pieces for clients that want them so."""
        self.close_connection = True  # its end is the end of the answer
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Connection", "close")
        self.end_headers()
        for chunk in _chunks(asked, written, asked.model):
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")


def _about(asked: Asked, model: str, chunk: bool) -> dict[str, Any]:
    kind = ("chat.completion" + (".chunk" if chunk else "")) if asked.chat else "text_completion"
    name = f"{'chatcmpl' if asked.chat else 'cmpl'}-{uuid.uuid4().hex}"
    return {"id": name, "object": kind, "created": int(time.time()), "model": model}


def _usage(written: Written) -> dict[str, int]:
    wrote = sum(choice.tokens for choice in written.choices)
    read_ = written.prompt_tokens
    return {"prompt_tokens": read_, "completion_tokens": wrote, "total_tokens": read_ + wrote}


def _whole(asked: Asked, written: Written, model: str) -> dict[str, Any]:
    choices = []
    for index, choice in enumerate(written.choices):
        said: dict[str, Any] = {"text": choice.text}
        if asked.chat:
            said = {"message": {"role": "assistant", "content": choice.text}}
        said |= {"token_ids": choice.ids.tolist()} if asked.tokens and choice.ids is not None else {}
        finish = "stop" if choice.ended else "length"
        choices.append({"index": index, "logprobs": None, "finish_reason": finish, **said})
    more = {} if written.about is None else {"preftune": dict(written.about)}
    return {**_about(asked, model, False), "choices": choices, "usage": _usage(written), **more}


def _chunks(asked: Asked, written: Written, model: str) -> Iterator[dict[str, Any]]:
    about = _about(asked, model, True)
    more = {} if written.about is None else {"preftune": dict(written.about)}

    def chunk(index: int, said: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choices = [{"index": index, "logprobs": None, "finish_reason": finish, **said}]
        return {**about, "choices": choices, **(more if finish and index == 0 else {})}

    for index, choice in enumerate(written.choices):
        if asked.chat:
            yield chunk(index, {"delta": {"role": "assistant", "content": ""}})
        for piece in PIECE.findall(choice.text) or [choice.text]:
            yield chunk(index, {"delta": {"content": piece}} if asked.chat else {"text": piece})
        yield chunk(index, {"delta": {}} if asked.chat else {"text": ""}, "stop" if choice.ended else "length")
    if asked.usage:
        yield {**about, "choices": [], "usage": _usage(written)}
