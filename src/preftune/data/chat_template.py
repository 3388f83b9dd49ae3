"""A tokenizer's chat template, and what must be known of it to tell prompt and response apart.

Where an answer ends, on which token generation stops and whether the generation prompt opens a thinking block are not
declared anywhere, so they are read off a rendering of known words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.data.records import Message
from preftune.errors import PreftuneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# For conversations where the tokenizer has no chat template. It needs no tokens of its own, and the space belongs to
# the answer, because most tokenizers keep a space with the word after it.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ '' if loop.first else '\\n\\n' }}"
    "{{ message.role | capitalize }}: {{ message.content | trim }}{{ eos_token if message.role == 'assistant' }}"
    "{% endfor %}{{ '\\n\\nAssistant:' if add_generation_prompt }}"
)

_USER, _ANSWER, _AGAIN = "qvprobeuser", "qvprobeanswer", "qvprobeagain"


class RenderingError(Exception):
    """The template cannot render these messages faithfully; the text says why."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt and one response as text.

    Attributes:
        text: all of it, up to the response's end token.
        starts: the text before each turn of the assistant in the response; the first one is the prompt.
    """

    text: str
    starts: tuple[str, ...]

    @property
    def divides(self) -> bool:
        """True if the text continues every one of its starts."""
        return all(self.text.startswith(start) for start in self.starts)


class ChatTemplate:
    """Renders conversations, and knows how the template ends an assistant's turn.

    Args:
        tokenizer: the tokenizer whose special tokens the template writes.
        template: Jinja text.
        options: further variables for the template, such as `enable_thinking`.

    Attributes:
        header: what the generation prompt has after the last message ("<|im_end|>\\n<|im_start|>assistant\\n").
        lead: what the template writes between the generation prompt and a given answer (an empty thinking block in
            Qwen 3); it is part of the response.
        opening: what the generation prompt has and a rendered answer lacks ("<think>\\n" in DeepSeek-R1), or "".
        tail: what the template writes after the last answer ("<|im_end|>\\n").
        kept_tail: the part of `tail` that belongs to the response: up to and including the end token ("<|im_end|>").
        end_id: the token on which generation stops: the first special token that the template writes after the last
            answer (the last of several that stand together), or eos_token if it writes none.
        turn_end_id: the same after an answer that is not the last, or None if the template writes none.

    Raises:
        PreftuneError: if the template does not work, reads no variable named in `options`, or leads to no end token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, options: Mapping[str, Any]) -> None:
        for name in options:
            if not re.search(rf"\b{re.escape(name)}\b", template):
                raise PreftuneError(
                    f"template_options names {name!r}, but the chat template reads no such variable: remove it"
                )
        self.tokenizer = tokenizer
        self.template = template
        self.options = dict(options)
        ids = special_tokens(tokenizer)
        self.header, self.opening, self.lead, self.tail = self._probe()
        end = _first(ids, self.tail)
        self.kept_tail = self.tail.rstrip()
        if end is not None:
            stop = self.tail.find(end) + len(end)
            while (adjacent := _first(ids, self.tail[stop:])) and self.tail.startswith(adjacent, stop):
                end, stop = adjacent, stop + len(adjacent)
            self.kept_tail = self.tail[:stop]
        self.end_id: int = tokenizer.eos_token_id if end is None else ids[end]
        if self.end_id is None:
            raise PreftuneError(
                "the chat template writes no end token after an answer and the tokenizer has no eos_token, so a model "
                "could not learn to stop: set tokenizer.eos_token"
            )
        turn_end = None if end is None else self._turn_end(end, ids)
        self.turn_end_id = None if turn_end is None else ids[turn_end]
        self.ends = frozenset(token for token in (end, turn_end, tokenizer.eos_token) if token)

    def notes(self) -> list[str]:
        """What a user should know about the template, a sentence each."""
        notes = []
        if self.opening:
            notes.append(
                f"the chat template's generation prompt ends with {self.opening!r}, but the template does not write "
                "this before a given answer: the prompts of such answers end before it"
            )
        if self.lead.strip():
            notes.append(f"the chat template writes {self.lead!r} before a given answer: the policy learns to say it")
        return notes

    def render(self, messages: Sequence[Message], generation_prompt: bool = False) -> str:
        """The text of a conversation.

        Raises:
            RenderingError: if the template cannot render it.
        """
        conversation = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text: str = self.tokenizer.apply_chat_template(
                conversation,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **self.options,
            )
            return text
        except Exception as error:  # a template is the user's program: it may raise anything
            raise RenderingError(f"the chat template refuses it: {' '.join(str(error).split())}") from error

    def responses(self, prompt: Sequence[Message], responses: Sequence[Sequence[Message]]) -> list[Rendered]:
        """The responses to one prompt, each rendered together with it; the prompt is the same text in all of them.

        Raises:
            RenderingError: if the template cannot render one of them, renders the prompt differently once a response
                follows, or leaves out part of a response.
        """
        start = self.render(prompt, generation_prompt=True)
        found = [self._response(prompt, start, response) for response in responses]
        if not all(rendered.divides for rendered in found):
            # The generation prompt opens a thinking block that some answer lacks. The longest prompt that is common to
            # all ends before it, and is still what the template writes before an answer.
            found = [
                Rendered(rendered.text, tuple(start.removesuffix(self.opening) for start in rendered.starts))
                for rendered in found
            ]
        if not all(rendered.divides for rendered in found):
            raise RenderingError("the chat template renders the prompt differently once a response follows")
        for rendered, response in zip(found, responses, strict=True):
            _check_whole(rendered, response, len(self.header))
        return found

    def _response(self, prompt: Sequence[Message], start: str, response: Sequence[Message]) -> Rendered:
        if not response or response[0].role != "assistant" or response[-1].role != "assistant":
            raise RenderingError("a response must begin and end with an assistant turn")
        full = self.render([*prompt, *response])
        if not full.endswith(self.tail):
            raise RenderingError(f"the chat template does not end the response with {self.tail!r}, as it usually does")
        later = [
            self.render([*prompt, *response[:i]], generation_prompt=True)
            for i, message in enumerate(response)
            if i > 0 and message.role == "assistant"
        ]
        return Rendered(full[: len(full) - len(self.tail)] + self.kept_tail, (start, *later))

    def _probe(self) -> tuple[str, str, str, str]:
        """`header`, `opening`, `lead` and `tail`."""
        try:
            prompt = self.render([Message("user", _USER)], generation_prompt=True)
            full = self.render([Message("user", _USER), Message("assistant", _ANSWER)])
        except RenderingError as refusal:
            raise PreftuneError(f"of a user turn and an answer, {refusal}; give another chat_template") from None
        shared = shared_length(prompt, full)
        answer = full.rfind(_ANSWER)
        if not 0 <= full.find(_USER) < shared <= answer or _USER in prompt[shared:]:
            raise PreftuneError(
                "the chat template renders a prompt differently once an answer follows, so prompt and response cannot "
                "be told apart: give another chat_template"
            )
        header = prompt[prompt.rfind(_USER) + len(_USER) :]
        return header, prompt[shared:], full[shared:answer], full[answer + len(_ANSWER) :]

    def _turn_end(self, end: str, ids: Mapping[str, int]) -> str | None:
        """The end token of an answer that is not the last; `end` is the last one's."""
        turns = [Message("user", _USER), Message("assistant", _ANSWER), Message("user", _AGAIN)]
        try:
            text = self.render([*turns, Message("assistant", "yes")])
        except RenderingError:
            return None
        between = text[text.rfind(_ANSWER) + len(_ANSWER) :].partition(_AGAIN)[0]
        return end if end in between else _first(ids, between)


class ControlTokens:
    """The texts that a tokenizer reads as control tokens: BOS, padding, the marks of turns, what ends an answer.

    Thinking markers are none, because answers are given with their thinking. Nor is a mere word or punctuation mark
    that serves as a special token besides ("!" as padding): it stands in any text.

    Args:
        tokenizer: whose special tokens they are.
        ends: further tokens that end an answer, as the chat template has it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Iterable[str] = ()) -> None:
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        marks = {
            token
            for token in special.union(tokenizer.all_special_tokens)
            if "think" not in token.lower() and any(c.isalnum() for c in token) and not token.isalnum()
        }
        self.ends = frozenset(filter(None, [tokenizer.eos_token, *ends]))
        longest_first = sorted(marks | self.ends, key=lambda token: (-len(token), token))
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")  # which is found nowhere

    def first(self, texts: Iterable[str]) -> str | None:
        """The first one that is spelt in the texts ("end token </s>"), or None."""
        found = next(filter(None, map(self._pattern.search, texts)), None)
        return found and f"{'end' if found[0] in self.ends else 'control'} token {found[0]}"


def find_template(tokenizer: PreTrainedTokenizerBase, given: str | None) -> str | None:
    """The chat template to use, as Jinja text: the one given (text, or the path of a file), else the tokenizer's own.

    Raises:
        PreftuneError: if the path cannot be read, or the tokenizer has several templates and no default.
    """
    if given is None:
        if not tokenizer.chat_template:
            return None
        try:
            own: str = tokenizer.get_chat_template()
            return own
        except ValueError as error:
            raise PreftuneError(f"the tokenizer has no default chat template ({error}): give chat_template") from None
    if "{" in given:
        return given
    try:
        return Path(given).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PreftuneError(
            f"chat_template {given!r} is neither Jinja text nor a file that can be read ({error}): give one of the two"
        ) from None


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Id of every special or added token, by its text."""
    added = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
    return added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


def prefix_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that the tokenizer puts before a text by itself: BOS, mostly."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    if not bare:  # a vocabulary of words that does not know this one
        return [index for index in full if index == tokenizer.bos_token_id]
    begin = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    return list(full[:begin])


def shared_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Length of the longest common prefix of two sequences of one type."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    return next(i for i in range(shorter) if first[i] != second[i])


def _first(tokens: Mapping[str, int], text: str) -> str | None:
    """The token that stands first in the text, or None; of two at one place, the longer."""
    found = [(text.find(token), -len(token), token) for token in tokens if token in text]
    return min(found)[2] if found else None


def _check_whole(rendered: Rendered, response: Sequence[Message], header: int) -> None:
    """Refuse a rendering that lacks part of an answer; white space may differ. The generation prompt, of which the last
    `header` characters follow the last message, may have opened the thinking block with which the answer begins."""
    answers = [message.content for message in response if message.role == "assistant"]
    begins = [max(0, len(start) - header) for start in rendered.starts]
    for answer, begin, end in zip(answers, begins, [*begins[1:], len(rendered.text)], strict=True):
        written = rendered.text[begin:end]
        if answer.strip() not in written and "".join(answer.split()) not in "".join(written.split()):
            raise RenderingError("the chat template leaves out part of the response (its thinking, perhaps)")
