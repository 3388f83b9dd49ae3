"""A server that writes the policy's answers where the model at hand is too slow: vLLM, or `preftune serve --adapters`.

Before each round the adapter that trains is written to disk and loaded into the server, which holds the base model and
answers under the adapter's name. Prompts go there and answers come back as tokens, so nothing is tokenised twice.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from preftune.errors import PreftuneError
from preftune.evaluation.asking import EndpointConfig, Request
from preftune.evaluation.endpoint import Endpoint
from preftune.evaluation.sampling import Sampled
from preftune.rlhf.plan import Asked

ADAPTER = "preftune"  # of a round: preftune-000003


class Server:
    """Samples from a policy behind an OpenAI-compatible endpoint, into which its adapter is loaded.

    Args:
        url: where the API begins; it serves the base model.
        folder: where adapters are written; the server reads them there, so it must see the same disk.

    Raises:
        PreftuneError: if nothing answers there.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.folder, self.loaded = folder, ""
        self.endpoint = Endpoint(EndpointConfig(url=url, model=ADAPTER, max_calls=None))

    def close(self) -> None:
        """Let go of it; the last adapter is taken out."""
        try:
            self._take_out()
        except PreftuneError:  # it may have ended before
            self.loaded = ""
        self.endpoint.close()

    def load(self, number: int, write: Callable[[Path], None]) -> None:
        """Let the server answer with the policy as it is now.

        Args:
            number: of the round.
            write: writes the adapter into a folder.

        Raises:
            PreftuneError: if it cannot be written, or the server does not take it.
        """
        name = f"{ADAPTER}-{number:06d}"
        place = self.folder / name
        self._take_out()
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        write(place)
        try:
            self.endpoint.post("/load_lora_adapter", {"lora_name": name, "lora_path": str(place.resolve())})
        except PreftuneError:
            shutil.rmtree(place, ignore_errors=True)
            raise
        self.loaded = self.endpoint.model = name

    def sample(
        self, asked: Sequence[Asked], each: int, *, longest: int, temperature: float, seed: int, end_ids: Sequence[int]
    ) -> list[list[Sampled]]:
        """Answers to each prompt; their log-probs are not what the server says, so they are left to be computed.

        Raises:
            PreftuneError: if the server fails, does not answer a prompt, or does not send tokens.
        """
        random = np.random.default_rng(seed)
        requests = [
            Request(
                ids=tuple(one.ids.tolist()),
                max_tokens=longest,
                temperature=temperature,
                seed=int(random.integers(2**31)),
            )
            for one in asked
            for _ in range(each)
        ]
        found = []
        for number, answer in enumerate(self.endpoint.answers(requests)):
            row = asked[number // each].row
            if answer.text is None:
                url = self.endpoint.config.url
                raise PreftuneError(f"{url} does not answer the prompt of row {row}: {answer.reason}")
            if not answer.ids:
                raise PreftuneError(
                    f"{self.endpoint.config.url} answers the prompt of row {row} without tokens (token_ids), as "
                    "return_token_ids asks for: take vLLM 0.10.2 or later, or preftune serve --adapters"
                )
            ids = np.array(answer.ids, np.int32)
            ended = int(ids[-1]) in end_ids
            if answer.ended and not ended:  # servers that leave the end token out
                ids, ended = np.append(ids, np.int32(end_ids[0])), True
            found.append(Sampled(ids, np.full(len(ids), np.nan, np.float32), ended))
        return [found[i : i + each] for i in range(0, len(found), each)]

    def _take_out(self) -> None:
        if self.loaded:
            name, self.loaded = self.loaded, ""
            self.endpoint.post("/unload_lora_adapter", {"lora_name": name})
            shutil.rmtree(self.folder / name, ignore_errors=True)
