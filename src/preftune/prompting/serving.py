"""An endpoint that rewrites prompts: the last user's turn comes in, its rewrite (or an answer to that) goes out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from preftune.data.records import Message, Text
from preftune.errors import PreftuneError
from preftune.evaluation.judges import EndpointUse
from preftune.prompting.generators import Generator, GeneratorSampling, open_generator
from preftune.prompting.optimize import Optimized, OptimizeSettings
from preftune.prompting.using import open_optimizer
from preftune.serving.adapters import Adapters
from preftune.serving.asked import CHAT_TOKENS, Asked, RequestError
from preftune.serving.command import serve_until_stopped
from preftune.serving.writer import Choice, Written


class RewritingServer:
    """Answers requests with optimised prompts; with a generator, by what it answers to them.

    One request is optimised at a time: a model that is loaded here computes for one only.

    Args:
        name: what clients call it.
        run: optimises prompts.
        generator: who answers the optimised prompt; None: the optimised prompt is the answer.
    """

    adapters: Adapters | None = None

    def __init__(
        self, name: str, run: Callable[[Sequence[str]], list[Optimized]], generator: Generator | None = None
    ) -> None:
        self.name, self._run, self._generator = name, run, generator
        self._at_work = threading.Lock()

    @property
    def names(self) -> list[str]:
        """What clients may ask: one name."""
        return [self.name]

    def write(self, asked: Asked) -> Written:
        """The optimised prompt, or the answer to it; in the field "preftune", whether it changed, and why not.

        Raises:
            RequestError: if it cannot be answered.
        """
        if asked.n > 1 and self._generator is None:
            raise RequestError(400, f"n is {asked.n}, and a prompt has one optimised form: leave n out", "n")
        naive = [_naive(prompt) for prompt in asked.prompts]
        with self._at_work:
            try:
                found = self._run(naive)
                return self._written(asked, found)
            except PreftuneError as error:
                # what was asked, or who is asked in turn
                own = any(each in str(error) for each in ("expected text", "expected at most", "takes none of"))
                raise RequestError(400 if own else 502, str(error)) from None

    def close(self) -> None:
        """Wait for the request under way."""
        with self._at_work:
            return

    def _written(self, asked: Asked, found: Sequence[Optimized]) -> Written:
        told = [{"changed": each.changed, "reason": each.reason, "prompt": each.text} for each in found]
        about = told[0] if len(told) == 1 else {"prompts": told}
        if self._generator is None:
            return Written(tuple(Choice(each.text, True, None) for each in found), 0, about)
        sampling = GeneratorSampling(
            max_new_tokens=CHAT_TOKENS if asked.max_tokens is None else asked.max_tokens,
            temperature=asked.temperature,
            top_p=asked.top_p,
            samples=asked.n,
            seed=asked.seed,
            stop=asked.stop,
        )
        prompts = [_replaced(prompt, each.text) for prompt, each in zip(asked.prompts, found, strict=True)]
        replies = self._generator.write(prompts, sampling)
        if refused := next((one.refused for some in replies for one in some if one.refused), ""):
            raise RequestError(400, f"{self._generator.name} does not take the prompt: {refused}")
        choices = tuple(Choice(one.text, one.ended, None, one.tokens) for some in replies for one in some)
        return Written(choices, sum(some[0].prompt_tokens for some in replies), about)


def _naive(prompt: Any) -> str:
    """What is to be rewritten.

    Raises:
        RequestError: if it is no text.
    """
    if isinstance(prompt, str):
        text = prompt
    elif isinstance(prompt[-1], Message) and prompt[-1].role == "user":
        text = prompt[-1].content
    else:
        raise RequestError(400, "there is no text of a user to rewrite, expected it at the end", "messages")
    if not text.strip():
        raise RequestError(400, "the prompt is empty, expected text", "prompt")
    return text


def _replaced(prompt: Any, text: str) -> Text:
    """The same text or conversation, with another last turn."""
    return text if isinstance(prompt, str) else (*prompt[:-1], replace(prompt[-1], content=text))


def serve(
    model: str,
    settings: OptimizeSettings,
    *,
    host: str,
    port: int,
    name: str | None = None,
    template: Path | None = None,
    generator: str | None = None,
    folder: Path | None = None,
    use: EndpointUse | None = None,
    say: Callable[[str], object],
) -> None:
    """Serve an optimiser until Ctrl-C or SIGTERM.

    Args:
        model: the optimiser.
        settings: how prompts are optimised.
        host: address to listen on.
        port: port; 0: any that is free.
        name: what clients call it; None: as the optimiser is called.
        template: how the optimiser is asked.
        generator: who answers optimised prompts; None: they are the answers.
        folder: where all that was written is kept, and replayed from.
        use: of endpoints.
        say: told where it listens, once it does.

    Raises:
        PreftuneError: if something named is not there, or the port is taken.
    """
    with ExitStack() as stack:
        run = stack.enter_context(open_optimizer(model, settings, template=template, folder=folder, use=use))
        answering = None
        if generator is not None:
            answering = stack.enter_context(open_generator(generator, None, use=use))
        what = f"{name or model}, which rewrites prompts" + (f" for {generator}" if generator else "")
        serve_until_stopped(RewritingServer(name or model, run, answering), host, port, say, what)
