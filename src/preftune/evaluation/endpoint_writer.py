"""Answers to held-out prompts from a model behind an endpoint, in place of one at hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from preftune.errors import PreftuneError
from preftune.evaluation.answers import Answer, Prompt, Sampling, Writer
from preftune.evaluation.endpoint import Endpoint, EndpointConfig
from preftune.evaluation.judges import ENDPOINT, EndpointUse

POLICY_CALLS, AGAINST_CALLS = "calls-policy.jsonl", "calls-against.jsonl"


@dataclass(frozen=True, kw_only=True)
class Answering:
    """Which endpoints answer prompts in place of the models at hand.

    Attributes:
        policy: URL, or URL#MODEL where the endpoint has several, in the policy's place; None: the policy itself.
        against: likewise for the other side; None: what the policy is compared with.
        use: how they may be used, each of them.
    """

    policy: str | None = None
    against: str | None = None
    use: EndpointUse | None = None

    @contextmanager
    def opened(self, folder: Path) -> Iterator[tuple[Endpoint | None, Endpoint | None]]:
        """The endpoints of both sides, whose calls a folder keeps and replays.

        Raises:
            PreftuneError: for a URL that is none, or an endpoint that has several models and none is named.
        """
        with ExitStack() as stack:
            yield (
                self._open(self.policy, folder / POLICY_CALLS, stack),
                self._open(self.against, folder / AGAINST_CALLS, stack),
            )

    def _open(self, name: str | None, kept: Path, stack: ExitStack) -> Endpoint | None:
        if name is None:
            return None
        url, _, model = name.removeprefix(ENDPOINT).partition("#")
        config = EndpointConfig(url=url, model=model, **vars(self.use or EndpointUse()))
        return stack.enter_context(Endpoint(config, kept))


def endpoint_writer(endpoint: Endpoint, sampling: Sampling) -> Writer:
    """Has an endpoint answer: conversations as such, plain text as text to continue.

    Args:
        endpoint: serves the model; the caller closes it.
        sampling: how; seeds are kept to where the endpoint knows them.
    """

    def write(prompts: Sequence[Prompt]) -> list[list[Answer]]:
        each = sampling.samples_per_prompt
        found = endpoint.generate(
            [prompt.source for prompt in prompts],
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            samples_per_prompt=each,
            seed=sampling.seed,
        )
        answers = []
        for number, one in enumerate(found):
            if one.text is None:
                raise PreftuneError(
                    f"{endpoint.config.url} does not answer the prompt of row "
                    f"{prompts[number // each].row}: {one.reason}"
                )
            answers.append(Answer(one.text, one.tokens, one.ended))
        return [answers[i : i + each] for i in range(0, len(answers), each)]

    return write
