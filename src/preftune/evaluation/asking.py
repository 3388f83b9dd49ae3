"""What is asked of an OpenAI-compatible endpoint and what comes back, and how the endpoint may be used."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from preftune.api_keys import hidden, is_secret
from preftune.data.records import Text
from preftune.errors import PreftuneError
from preftune.evaluation.budget import Budget

KEY_VARIABLE = "OPENAI_API_KEY"
TOKENS = "return_token_ids"  # field of a request, as vLLM has it
PER_MESSAGE = 32  # most tokens that a chat template puts around a message


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """Which endpoint, and how it may be used.

    Attributes:
        url: where the API begins: "http://127.0.0.1:8000/v1"; "/v1" is added to a URL without a path.
        model: name of the model there; empty: the only one that it has.
        key_variable: environment variable that holds the API key; the only place a key is taken from.
        timeout: seconds that an answer may take.
        retries: how often a call is repeated after a time-out, a broken connection, or a status of 429 or from 500 on.
        first_wait: seconds before the first repetition; doubled each time, a random part of it is waited.
        concurrency: calls under way at a time.
        max_calls: requests that may be sent, repetitions and earlier sessions with the same file included.
        max_tokens: tokens of prompts and answers, likewise; None: any number.
        budget: one that several endpoints share, in place of the two before.
    """

    url: str
    model: str = ""
    key_variable: str = KEY_VARIABLE
    timeout: float = 120.0
    retries: int = 6
    first_wait: float = 1.0
    concurrency: int = 8
    max_calls: int | None = 10_000
    max_tokens: int | None = None
    budget: Budget | None = None

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            good = False
        if not good:
            raise PreftuneError(f"{hidden(self.url)!r} is no URL of an endpoint, expected http://HOST:PORT/v1")
        if parts.username or parts.password or is_secret(self.url) or is_secret(self.key_variable):
            raise PreftuneError(
                f"an API key is taken from the environment alone: set {KEY_VARIABLE}, and leave it out of the URL "
                f"{hidden(urlunsplit(parts._replace(netloc=parts.netloc.rpartition('@')[2], query='')))}"
            )
        path = parts.path.rstrip("/") or "/v1"
        object.__setattr__(self, "url", urlunsplit(parts._replace(path=path, fragment="")))
        for name, value, least in (("timeout", self.timeout, 1e-3), ("first_wait", self.first_wait, 0.0)):
            if not (math.isfinite(value) and value >= least):
                raise PreftuneError(f"{name} is {value}, expected at least {least:g} seconds")
        for name, count, fewest in (("retries", self.retries, 0), ("concurrency", self.concurrency, 1)):
            if count < fewest:
                raise PreftuneError(f"{name} is {count}, expected at least {fewest}")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question to an endpoint.

    Attributes:
        prompt: text, which is continued; or turns, which are answered.
        ids: the prompt as tokens, in place of text; the answer's tokens are asked for, too (vLLM, preftune serve).
        max_tokens: tokens at which the answer is cut.
        temperature: 0 takes the most probable token.
        top_p: mass of the most probable tokens to draw from.
        seed: of what is drawn, for endpoints that take one.
        stop: texts that end the answer, and are no part of it.
    """

    prompt: Text = ""
    ids: tuple[int, ...] = ()
    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def body(self, model: str) -> dict[str, Any]:
        """As the API takes it."""
        body: dict[str, Any] = {"model": model, "max_tokens": self.max_tokens, "temperature": self.temperature}
        body |= {"top_p": self.top_p} if self.top_p < 1 else {}
        body |= {"seed": self.seed} if self.seed is not None else {}
        body |= {"stop": list(self.stop)} if self.stop else {}
        if self.ids:
            return body | {"prompt": list(self.ids), TOKENS: True}
        if isinstance(self.prompt, str):
            return body | {"prompt": self.prompt}
        return body | {"messages": [{"role": turn.role, "content": turn.content} for turn in self.prompt]}

    @property
    def most_tokens(self) -> int:
        """More than it can take: a token is at least a byte of text."""
        if self.ids:
            return len(self.ids) + self.max_tokens
        turns = [self.prompt] if isinstance(self.prompt, str) else [turn.content for turn in self.prompt]
        return sum(len(turn.encode(errors="replace")) + PER_MESSAGE for turn in turns) + PER_MESSAGE + self.max_tokens


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Attributes:
        text: the answer; None if the endpoint did not take the request.
        ended: True if it came to its end, False if it was cut.
        prompt_tokens: tokens that the endpoint read.
        tokens: tokens that it wrote.
        reason: why there is no text.
        ids: its tokens, if they were asked for.
    """

    text: str | None
    ended: bool = False
    prompt_tokens: int = 0
    tokens: int = 0
    reason: str = ""
    ids: tuple[int, ...] = ()
