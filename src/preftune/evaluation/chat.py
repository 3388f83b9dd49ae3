"""Talking to a model: in a terminal, or line by line from a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, TextStreamer

from preftune.data.chat_template import prefix_ids
from preftune.data.records import Message
from preftune.data.rendering import Renderer
from preftune.errors import PreftuneError
from preftune.evaluation.models import find, load_policy
from preftune.policy.loading import positions
from preftune.training.batches import SAMPLING, torch_seed

HELP = "/reset forgets the conversation, /quit ends it"


@dataclass
class Chat:
    """A conversation with one model. Where it has no chat template, each line is continued on its own, as training
    continues plain prompts, and nothing is remembered.

    Args:
        path: run folder, or model: folder, hub id or "sandbox".
        temperature: of the answers; 0 takes the likeliest token each time.
        max_new_tokens: at which an answer is cut.
        seed: of the draws; the same lines after the same seed give the same answers.
        plain: continue lines even if there is a chat template.
        system: a system turn to begin with.

    Raises:
        PreftuneError: if there is no such model, or it gives no answers.
    """

    path: str
    temperature: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0
    plain: bool = False
    system: str | None = None
    turns: list[Message] = field(default_factory=list)
    asked: int = 0

    def __post_init__(self) -> None:
        named = find(self.path)
        if named.is_reward_model:
            raise PreftuneError(f"{self.path} is a reward model, which gives no answers: name a policy")
        loaded = load_policy(named)
        self.lm: Any = loaded.lm.eval()
        if not hasattr(self.lm, "generate"):
            raise PreftuneError(f"{self.path} gives no answers: {type(self.lm).__name__} has no method generate")
        cuda = torch.cuda.is_available()
        self.device = "cuda" if cuda else "mps" if torch.backends.mps.is_available() else "cpu"
        self.bf16 = cuda and torch.cuda.is_bf16_supported()
        self.lm.to(self.device)
        self.tokenizer: Any = loaded.tokenizer
        renderer = Renderer(loaded.tokenizer, named.config.data.rendering)
        self.template = None if self.plain else renderer.chat
        self.end_ids = sorted(renderer.end_ids)
        if self.system is not None and self.template is None:
            raise PreftuneError(f"{self.path} has no chat template, so that a system turn has no place: leave it out")
        self.reset()

    def reset(self) -> None:
        """Forget what was said."""
        self.turns = [] if self.system is None else [Message("system", self.system)]

    def answer(self, line: str, streamer: TextStreamer | None = None) -> str:
        """The model's answer to a line, which it remembers in a conversation.

        Args:
            line: what the user says, or the text to continue.
            streamer: shown the answer token by token.

        Raises:
            PreftuneError: if the conversation has become longer than the model reads; it is as it was before the line.
        """
        turns = [*self.turns, Message("user", line)]
        if self.template is None:
            ids = [*prefix_ids(self.tokenizer), *self._ids(line)]
        else:
            ids = self._ids(self.template.render(turns, generation_prompt=True))
        room = self._room(len(ids))
        torch.manual_seed(torch_seed(self.seed, SAMPLING, self.asked))
        draws = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        settings = GenerationConfig(
            max_new_tokens=room,
            eos_token_id=self.end_ids or None,
            pad_token_id=self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self._pad(),
            **(draws if self.temperature else {"do_sample": False}),
        )
        ids_1L = torch.tensor([ids], device=self.device)
        with torch.no_grad(), self._precision():
            found = self.lm.generate(
                ids_1L, attention_mask=torch.ones_like(ids_1L), generation_config=settings, streamer=streamer
            )
        text = str(self.tokenizer.decode(found[0, len(ids) :], skip_special_tokens=True))
        self.asked += 1
        if self.template is not None:
            self.turns = [*turns, Message("assistant", text)]
        return text

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _pad(self) -> int:
        return self.end_ids[0] if self.end_ids else 0

    def _room(self, length: int) -> int:
        """Tokens that the answer may have."""
        if not length:
            raise PreftuneError("this line has no tokens to continue: write something")
        config: Any = getattr(self.lm, "config", None)
        text = None if config is None else config.get_text_config()
        end = positions(self.lm) or getattr(text, "max_position_embeddings", None)
        if end is None:
            return self.max_new_tokens
        if length >= end:
            raise PreftuneError(f"that makes {length} tokens, and the model reads {end}: /reset, or write less")
        return min(self.max_new_tokens, end - length)

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast("cuda", torch.bfloat16) if self.bf16 else nullcontext()


def converse(
    chat: Chat, lines: Iterable[str], say: Callable[[str], object], note: Callable[[str], object], stream: bool
) -> None:
    """Answer lines until they end, or /quit.

    Args:
        chat: with whom.
        lines: of the user.
        say: prints an answer, or a piece of one.
        note: prints what is no answer.
        stream: show answers as they are written; otherwise one line for each, its line ends escaped.
    """
    for line in (each.rstrip("\r\n") for each in lines):
        command = line.strip()
        if command == "/quit":
            return
        if command == "/reset":
            chat.reset()
        elif command == "/help":
            note(HELP)
        elif command:
            try:
                streamer = _Streamer(chat.tokenizer, say) if stream else None
                text = chat.answer(line, streamer)
            except PreftuneError as error:
                note(str(error))
                continue
            say("\n" if stream else text.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n") + "\n")


class _Streamer(TextStreamer):
    """Hands on an answer piece by piece."""

    def __init__(self, tokenizer: Any, say: Callable[[str], object]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.say = say

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """A piece whose characters will not change any more."""
        self.say(text)
