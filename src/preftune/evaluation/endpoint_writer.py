"""Answers to held-out prompts from a model behind an endpoint, in place of one at hand."""

from __future__ import annotations

from collections.abc import Sequence

from preftune.errors import PreftuneError
from preftune.evaluation.answers import Answer, Prompt, Sampling, Writer
from preftune.evaluation.endpoint import Endpoint


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
