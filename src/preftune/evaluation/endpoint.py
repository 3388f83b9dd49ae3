"""Answers from an OpenAI-compatible endpoint: vLLM, a provider, or `preftune serve`.

requests -> kept answers replayed -> calls within a budget, repeated where that may help -> answers, each kept at once
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.api_keys import HIDDEN, hidden
from preftune.data.records import Text
from preftune.errors import PreftuneError
from preftune.evaluation.asking import TOKENS, Answer, EndpointConfig, Request
from preftune.evaluation.budget import Budget
from preftune.evaluation.calls import recall
from preftune.evaluation.journal import Journal

if TYPE_CHECKING:
    import openai

LONGEST_WAIT = 60.0  # seconds between two tries
AGAIN = (408, 409, 425, 429)  # beside all from 500 on
OF_ONE_REQUEST = (400, 413, 422)  # it may be this prompt alone that the endpoint does not take
Progress = Callable[[int, int], object]

__all__ = ["Answer", "Endpoint", "EndpointConfig", "Request"]


class Endpoint:
    """A model behind an OpenAI-compatible endpoint. Use it as a context manager.

    Args:
        config: which, and how it may be used.
        kept: file that keeps every call and its answer, and from which answers are replayed; None: none are kept.

    Attributes:
        budget: what has been spent, of what may be.
        model: name of the model.

    Raises:
        PreftuneError: if the `openai` package is missing, the file cannot be used, or the model must be named.
    """

    def __init__(self, config: EndpointConfig, kept: Path | None = None) -> None:
        try:
            import openai
        except ImportError:
            raise PreftuneError("an endpoint needs the openai package: pip install 'preftune[serve]'") from None
        self.config, self._openai = config, openai
        self.budget = config.budget or Budget(config.max_calls, config.max_tokens)
        self._key = os.environ.get(config.key_variable, "").strip()
        self._answers: dict[str, Answer] = {}
        self._stop = threading.Event()
        self._journal = None if kept is None else Journal(kept)
        if self._journal is not None:
            self._answers = recall(self._journal, self.budget)
        # a key must be given to the client, also for servers that ask for none
        self._client = openai.OpenAI(
            base_url=config.url, api_key=self._key or "none", timeout=config.timeout, max_retries=0
        )
        try:
            self.model = config.model or self._only_model()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """URL#MODEL."""
        return f"{self.config.url}#{self.model}"

    def close(self) -> None:
        """End connections, and let others use the file of answers."""
        self._client.close()
        if self._journal is not None:
            self._journal.close()

    def generate(
        self,
        prompts: Sequence[Text],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        samples_per_prompt: int = 1,
        seed: int = 0,
        stop: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> list[Answer]:
        """Responses to prompts, as `sampling.sample` gives them of a local model.

        Args:
            prompts: texts to continue, or conversations to answer.
            max_new_tokens: tokens at which a response is cut.
            temperature: 0 takes the most probable token.
            top_p: mass of the most probable tokens to draw from.
            samples_per_prompt: responses to each prompt.
            seed: of what is drawn, where the endpoint takes one; different prompts draw apart.
            stop: texts that end a response, and are no part of it.
            progress: told how many of how many are there.

        Returns:
            Prompt i has `[i * samples_per_prompt : (i + 1) * samples_per_prompt]`.

        Raises:
            PreftuneError: as `answers`.
        """
        asked: Counter[Text] = Counter()
        requests = []
        for prompt in prompts:
            for _ in range(samples_per_prompt):
                number = asked[prompt]  # a prompt that stands there twice gets other samples the second time
                asked[prompt] += 1
                drawn = int.from_bytes(hashlib.sha256(f"{seed} {number} {prompt}".encode()).digest()[:4]) >> 1
                requests.append(
                    Request(
                        prompt=prompt,
                        max_tokens=max_new_tokens,
                        temperature=temperature,
                        top_p=top_p,
                        seed=drawn if temperature > 0 else None,
                        stop=tuple(stop),
                    )
                )
        return self.answers(requests, progress)

    def post(self, path: str, body: Mapping[str, Any]) -> None:
        """One call beside those for answers, such as one that loads an adapter; it is not repeated, kept or counted.

        Raises:
            PreftuneError: if it comes to nothing.
        """
        try:
            self._client.post(path, body=dict(body), cast_to=object)
        except self._openai.APIStatusError as error:
            raise PreftuneError(f"{self.config.url}{path} refuses: {self._reason(error)}") from None
        except self._openai.APIError as error:
            raise PreftuneError(
                f"{self.config.url}{path} does not answer: {self._clean(error.__cause__ or error)}"
            ) from None

    def answers(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Answer]:
        """The answers to requests, in their order. Like requests are sent once, and those answered before never again.

        Args:
            requests: what to ask.
            progress: told how many of how many are there.

        Returns:
            An answer for each; one without text, and a reason, for what the endpoint refused of this request alone.

        Raises:
            PreftuneError: if the endpoint cannot be reached, refuses key or model, fails again and again, or the
                budget is used up. What was answered until then is kept.
        """
        bodies = [request.body(self.model) for request in requests]
        keys = [self._name(body) for body in bodies]
        missing = {key: i for i, key in enumerate(keys) if key not in self._answers}
        refused: dict[str, Answer] = {}
        done = len(keys) - len(missing)
        if progress is not None:
            progress(done, len(keys))
        self._stop.clear()
        pool = ThreadPoolExecutor(self.config.concurrency)
        asked = {pool.submit(self._last, key, requests[i], bodies[i]): key for key, i in missing.items()}
        waiting: set[Future[Answer]] = set(asked)
        try:
            while waiting:
                ready, waiting = wait(waiting, timeout=0.5, return_when=FIRST_EXCEPTION)
                for future in ready:
                    if isinstance(future.exception(), _GivenUpError):
                        continue  # because of another one, whose error says why
                    answer = future.result()
                    if answer.text is None:
                        refused[asked[future]] = answer
                done += len(ready)
                if progress is not None and ready:
                    progress(done, len(keys))
        finally:
            self._stop.set()  # those that wait for a repetition give up; those under way are kept
            pool.shutdown(wait=True, cancel_futures=True)
        return [self._answers.get(key) or refused[key] for key in keys]

    def _last(self, key: str, request: Request, body: Mapping[str, Any]) -> Answer:
        """One request, and no further one after an error that stops them all."""
        try:
            return self._ask(key, request, body)
        except BaseException:
            self._stop.set()
            raise

    def _ask(self, key: str, request: Request, body: Mapping[str, Any]) -> Answer:
        """One request, until it is answered or refused."""
        problem = ""
        for attempt in range(self.config.retries + 1):
            if self._stop.is_set():
                raise _GivenUpError
            found = self._try(key, request, body)
            if isinstance(found, Answer):
                return found
            problem = found.problem
            if attempt < self.config.retries:
                self._pause(attempt, found.pause)
        raise PreftuneError(
            f"{self.config.url} gave no answer, asked {self.config.retries + 1} times ({problem}): check that it "
            "runs and is not overloaded; what was answered is kept, and the same command goes on"
        )

    def _try(self, key: str, request: Request, body: Mapping[str, Any]) -> Answer | _Failure:
        """One call, within the budget; what it took is counted and kept whatever comes of it."""
        aside = request.most_tokens
        self.budget.put_aside(aside)
        if self._stop.is_set():  # while it waited for a share of the budget
            self.budget.count(aside, 0)
            raise _GivenUpError
        spent, failure = aside, _Failure("broken off")
        try:
            self._keep({"key": key, "sent": aside})
            answer = self._read(self._send(body))
            spent = answer.prompt_tokens + answer.tokens or aside
            self._keep({"key": key, "request": body, **vars(answer), "spent": spent})
            self._answers[key] = answer
            return answer
        except self._openai.APIStatusError as error:
            spent, failure = 0, _Failure(self._reason(error), _asked_for(error.response.headers))
            if error.status_code in OF_ONE_REQUEST:
                return Answer(None, reason=failure.problem)
            if not _may_help(error):
                raise PreftuneError(self._refusal(error, failure.problem)) from None
        except self._openai.APITimeoutError:
            failure = _Failure(f"no answer within {self.config.timeout:g} s")
        except self._openai.APIConnectionError as error:
            spent = 0 if _never_connected(error) else aside
            failure = _Failure(self._clean(error.__cause__ or error))
        except (ValueError, self._openai.APIError) as error:
            failure = _Failure(self._clean(error))
        finally:
            self.budget.count(aside, spent)
            if key not in self._answers:
                self._keep({"key": key, "failed": failure.problem, "tokens": spent})
        return failure

    def _send(self, body: Mapping[str, Any]) -> Any:
        if TOKENS in body:  # which OpenAI's own client does not know
            known = {name: value for name, value in body.items() if name != TOKENS}
            return self._client.completions.create(**known, extra_body={TOKENS: body[TOKENS]})
        if "prompt" in body:
            return self._client.completions.create(**body)
        return self._client.chat.completions.create(**body)

    def _read(self, response: Any) -> Answer:
        """The answer in a response.

        Raises:
            ValueError: if there is none.
        """
        try:
            choice = response.choices[0]
            text = choice.text if hasattr(choice, "text") else choice.message.content
            usage = response.usage
            read, written = (int(getattr(usage, f"{name}_tokens", None) or 0) for name in ("prompt", "completion"))
        except (AttributeError, TypeError, IndexError, ValueError):
            raise ValueError("what it answered is no completion") from None
        if text is None:  # an answer of nothing, such as one that was all thought
            text = ""
        if not isinstance(text, str) or min(read, written) < 0:
            raise ValueError("what it answered is no completion")
        ids = getattr(choice, "token_ids", None) or ()
        if not all(type(token) is int for token in ids):
            raise ValueError("the tokens that it answered are no whole numbers")
        return Answer(text, choice.finish_reason == "stop", read, written, ids=tuple(ids))

    def _pause(self, attempt: int, asked_for: float) -> None:
        """Wait before the next try: twice as long each time, at random, so that not all come back at once."""
        longest = min(self.config.first_wait * 2**attempt, LONGEST_WAIT)
        if self._stop.wait(max(longest * random.uniform(0.5, 1.0), asked_for)):
            raise _GivenUpError

    def _keep(self, line: Mapping[str, Any]) -> None:
        if self._journal is not None:
            self._journal.add(line)

    def _name(self, body: Mapping[str, Any]) -> str:
        """What a request is known by: where it goes, and all of it."""
        text = json.dumps([self.config.url, body], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _only_model(self) -> str:
        """The endpoint's model, if it has one alone."""
        try:
            names = [str(model.id) for model in self._client.models.list().data]
        except self._openai.APIStatusError as error:
            raise PreftuneError(self._refusal(error, self._reason(error))) from None
        except (self._openai.APIError, AttributeError, TypeError, ValueError) as error:
            problem = self._clean(error.__cause__ or error)
            raise PreftuneError(
                f"{self.config.url} does not say which models it has ({problem}): check that it runs, or name the "
                "model as URL#MODEL"
            ) from None
        if len(names) != 1:
            listed = ", ".join(names[:8]) or "none"
            raise PreftuneError(f"{self.config.url} has not one model but these: {listed}; name one as URL#MODEL")
        return names[0]

    def _refusal(self, error: openai.APIStatusError, problem: str) -> str:
        """What to say of a status that repeating does not mend."""
        variable, url = self.config.key_variable, self.config.url
        if error.status_code in (401, 403):
            told = f"the API key in {variable}" if self._key else f"a call without an API key ({variable} is not set)"
            return f"{url} refuses {told}: {problem}; set {variable} to a key that may use it"
        if error.status_code == 404:
            model = getattr(self, "model", "") or self.config.model
            return f"{url} does not know model {model!r}, or is no OpenAI-compatible endpoint: {problem}"
        return f"{url} refuses to answer: {problem}"

    def _reason(self, error: openai.APIStatusError) -> str:
        """What an endpoint says of its refusal."""
        said = error.body.get("message") if isinstance(error.body, Mapping) else None
        said = said or getattr(error, "message", "") or ""
        return f"status {error.status_code}, {self._clean(said)}" if said else f"status {error.status_code}"

    def _clean(self, said: object) -> str:
        """An error's words in one line, without the key."""
        text = " ".join(str(said).split())
        return hidden(text.replace(self._key, HIDDEN) if self._key else text)[:200] or type(said).__name__


@dataclass(frozen=True)
class _Failure:
    """A call that came to nothing and may be repeated: why, and after how many seconds at least."""

    problem: str
    pause: float = 0.0


class _GivenUpError(Exception):
    """Another request has failed for good, so this one is not repeated."""


def _may_help(error: openai.APIStatusError) -> bool:
    """True if the same call may be answered later. A quota that is used up will not come back by itself."""
    quota = error.status_code == 429 and error.code == "insufficient_quota"
    return (error.status_code in AGAIN or error.status_code >= 500) and not quota


def _asked_for(headers: Mapping[str, str]) -> float:
    """Seconds that an endpoint asks to wait, within reason."""
    try:
        seconds = float(headers.get("retry-after", "0"))
    except ValueError:  # a date
        return 0.0
    return min(seconds, LONGEST_WAIT) if seconds > 0 else 0.0


def _never_connected(error: BaseException) -> bool:
    """True if a call cannot have been heard: nobody listens there, or there is no such host."""
    seen: BaseException | None = error
    while seen is not None:
        if type(seen).__name__ == "ConnectError":
            return True
        seen = seen.__cause__
    return False
