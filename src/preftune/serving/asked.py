"""The bodies of requests, checked: what is asked of the model."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from preftune.data.fields import Unfit, read_turns, shown
from preftune.data.records import Text

Tokens = tuple[int, ...]
# What would change the answer and is not known here; a value that changes nothing is taken.
UNKNOWN: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "logprobs": (None, False),
    "logit_bias": (None, {}),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
}
TEXT_TOKENS, CHAT_TOKENS = 16, 512  # written where a request does not say how many; the first is OpenAI's
MOST_CHOICES = 128


class RequestError(Exception):
    """A request that is not answered: an HTTP status, what is wrong, and which field it is about."""

    def __init__(self, status: int, message: str, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.field, self.code = status, field, code

    def body(self) -> dict[str, Any]:
        """As OpenAI's API writes it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.field, "code": self.code}}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a request asks for.

    Attributes:
        model: name of what is to answer: the model, or an adapter on it.
        prompts: texts or tokens to continue (one or several), or one conversation to answer.
        chat: True for a conversation.
        max_tokens: tokens at which an answer is cut; None: what is left of the context, up to `CHAT_TOKENS`.
        temperature: 0 takes the most probable token.
        top_p: mass of the most probable tokens to draw from.
        n: answers to each prompt.
        seed: of what is drawn.
        stop: texts that end an answer, and are no part of it.
        stream: send the answer in pieces.
        usage: send the counts of tokens at the end of a stream.
        tokens: send the tokens of answers.
    """

    model: str
    prompts: tuple[Text | Tokens, ...]
    chat: bool
    max_tokens: int | None
    temperature: float
    top_p: float
    n: int
    seed: int
    stop: tuple[str, ...]
    stream: bool
    usage: bool
    tokens: bool


def read(body: Mapping[str, Any], chat: bool, models: Sequence[str]) -> Asked:
    """The body of a request for a completion.

    Args:
        body: what was sent.
        chat: True for /v1/chat/completions.
        models: names of the model that is served, and of adapters on it.

    Raises:
        RequestError: if it cannot be answered as it stands.
    """
    model = body.get("model", models[0])
    if model not in models:
        told = f"there is no model {shown(model)} here, this is {' with '.join(models)}"
        raise RequestError(404, told, "model", "model_not_found")
    for field, allowed in UNKNOWN.items():
        if body.get(field) not in allowed:
            raise RequestError(400, f"{field} is not supported here: leave it out", field)
    most = next((field for field in ("max_completion_tokens", "max_tokens") if body.get(field) is not None), "")
    max_tokens = None if chat else TEXT_TOKENS
    stream = body.get("stream")
    options = body.get("stream_options")
    return Asked(
        model=model,
        prompts=(_turns(body),) if chat else _texts(body),
        chat=chat,
        max_tokens=_whole(body, most, 1, 10**9, 1) if most else max_tokens,
        temperature=_number(body, "temperature", 0.0, 100.0, 1.0),
        top_p=_number(body, "top_p", 1e-9, 1.0, 1.0),
        n=_whole(body, "n", 1, MOST_CHOICES, 1),
        seed=_whole(body, "seed", 0, 2**63 - 1, secrets.randbelow(2**31)),
        stop=_stop(body),
        stream=stream is True,
        usage=isinstance(options, Mapping) and options.get("include_usage") is True,
        tokens=body.get("return_token_ids") is True,
    )


def _turns(body: Mapping[str, Any]) -> Text:
    value = body.get("messages")
    if isinstance(value, list):  # content may come in parts, of which we read text
        value = [{**turn, "content": _joined(turn)} if isinstance(turn, Mapping) else turn for turn in value]
    try:
        turns = read_turns(value, "messages")
    except Unfit as error:
        raise RequestError(400, str(error), "messages") from None
    if turns[-1].role not in ("user", "tool"):
        raise RequestError(400, f"messages ends with role {turns[-1].role}, expected user", "messages")
    return turns


def _joined(turn: Mapping[str, Any]) -> Any:
    parts = turn.get("content")
    if not isinstance(parts, list):
        return parts
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise RequestError(400, "messages has content that is no text, expected text alone", "messages")
    return "".join(str(text) for text in texts)


def _texts(body: Mapping[str, Any]) -> tuple[str, ...] | tuple[Tokens, ...]:
    value = body.get("prompt")
    many = [value] if _are_tokens(value) else value
    if isinstance(many, list) and many and all(map(_are_tokens, many)):
        return tuple(tuple(ids) for ids in many)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise RequestError(400, f"prompt is {shown(value)}, expected text or tokens, or a list of those", "prompt")
    return tuple(texts)


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int and 0 <= one < 2**31 for one in value)


def _stop(body: Mapping[str, Any]) -> tuple[str, ...]:
    value = body.get("stop")
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > 16 or not all(isinstance(text, str) and text for text in texts):
        raise RequestError(400, f"stop is {shown(value)}, expected text, or a list of at most 16", "stop")
    return tuple(texts)


def _number(body: Mapping[str, Any], field: str, low: float, high: float, default: float) -> float:
    value = body.get(field)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        least = "above 0" if field == "top_p" else f"from {low:g}"
        raise RequestError(400, f"{field} is {shown(value)}, expected a number {least} to {high:g}", field)
    return float(value)


def _whole(body: Mapping[str, Any], field: str, low: int, high: int, default: int) -> int:
    value = body.get(field)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RequestError(400, f"{field} is {shown(value)}, expected a whole number from {low} to {high}", field)
    return value
