"""Records -> examples: texts become the token ids of one prompt and of the responses to it.

One rule stands above the others: the ids of a prompt and a response, put together, are the ids of the whole text as
the tokenizer reads it at once. This is checked on every record, because a tokenizer may join the end of a prompt with
the start of a response into one token, and a chat template may render a prompt differently once an answer follows.

- A conversation is rendered with the chat template. The prompt ends with the template's generation prompt; the response
  ends with the token on which generation stops (`ChatTemplate.end_id`), and what the template writes after it ("\\n" in
  ChatML) is left out. If the template writes no end token, eos_token is appended. BOS is what the template writes.
- Plain text is taken as it is, even if the tokenizer has a chat template. BOS is what the tokenizer adds by itself, and
  eos_token is appended to the response.
- If one of prompt and response is plain text and the other a conversation, the plain one is read as one turn.
- A record whose own text spells a control token is left out: the tokenizer would read that as the token itself. Plain
  text alone may begin with BOS and end with eos_token, which are then not written again.
- In a response of several turns only the assistant's are targets, each with its end token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, ParamSpec, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from preftune.data.chat_template import (
    PLAIN_TEMPLATE,
    ChatTemplate,
    ControlTokens,
    Rendered,
    RenderingError,
    find_template,
    prefix_ids,
    shared_length,
)
from preftune.data.examples import Example, Ids, Response
from preftune.data.records import Dropped, Judged, Message, Preference, PromptOnly, Ranking, Record, Text, Where
from preftune.errors import PreftuneError
from preftune.objectives.batch import Role

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHIFT = "set data.rendering.boundary=shift to let the prompt end before that token"
MEND_TEXT = (
    "end prompts with a line break or begin responses with a space; set data.rendering.text_as_chat=true if the model "
    f"expects its chat template; or {SHIFT}"
)
MEND_CHAT = f"strip white space from the start of responses, or {SHIFT}"

P = ParamSpec("P")
T = TypeVar("T")


class RenderingConfig(BaseModel):
    """How records become token ids."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_length: int | None = Field(default=2048, ge=2, description="most tokens of a prompt and one response together")
    truncate: Literal["drop", "prompt_head", "response_end"] = Field(
        default="drop",
        description="what becomes of longer ones: left out; the prompt's start cut off (BOS stays); the response's end "
        "cut off (it then has no end token)",
    )
    chat_template: str | None = Field(
        default=None, description="Jinja text, or a file with it; none: the tokenizer's own"
    )
    template_options: dict[str, Any] = Field(
        default_factory=dict, description="further variables for the chat template, such as {enable_thinking: false}"
    )
    text_as_chat: bool = Field(
        default=False, description="read plain-text prompts as a user's turn and plain-text responses as an assistant's"
    )
    boundary: Literal["exact", "shift"] = Field(
        default="exact",
        description="if the tokenizer joins the end of a prompt and the start of a response into one token: refuse, "
        "naming the rows; or let the prompt end before that token, which then belongs to the response",
    )


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that cannot be rendered faithfully: an error, not something to leave out in silence."""

    where: Where
    reason: str


class _LeftOutError(Exception):
    """The record is left out, and listed."""


class _Given(NamedTuple):
    """A response as the record gives it."""

    name: str
    role: Role
    score: float
    text: Text


@dataclass(frozen=True, slots=True)
class _Plan:
    """What must be tokenised for one record, and what surrounds it."""

    record: Record
    given: Sequence[_Given]
    rendered: Sequence[Rendered]
    prefix: list[int]  # ids that stand before the prompt
    end_id: int
    turn_end_id: int | None
    mend: str  # what to do if the tokenizer joins a prompt and a response


class Renderer:
    """Turns records into examples.

    Args:
        tokenizer: the policy's tokenizer.
        config: how to render.

    Attributes:
        template: the chat template that was given or comes with the tokenizer, as Jinja text.
        chat: the chat template in use; None as long as none is needed.
        notes: what a user should know about tokenizer and template, a sentence each.

    Raises:
        PreftuneError: if the chat template cannot be read or does not work with this tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: RenderingConfig | None = None) -> None:
        self.tokenizer = tokenizer
        self.config = config or RenderingConfig()
        self.notes: list[str] = []
        self.chat: ChatTemplate | None = None
        self._text_prefix = prefix_ids(tokenizer)
        self._chat_prefix: list[int] = []
        self.template = find_template(tokenizer, self.config.chat_template)
        if self.template is not None:
            self.chat = ChatTemplate(tokenizer, self.template, self.config.template_options)
            self.notes += self.chat.notes()
        elif self.config.template_options:
            raise PreftuneError("template_options are given, but the tokenizer has no chat template: remove them")
        self._control = ControlTokens(tokenizer, self.chat.ends if self.chat else ())

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens on which a policy trained on these examples stops."""
        ids = {self.tokenizer.eos_token_id, None if self.chat is None else self.chat.end_id}
        return frozenset(index for index in ids if index is not None)

    def use_chat(self) -> ChatTemplate:
        """The chat template, which is a plain one from now on if the tokenizer has none."""
        if self.chat is None:
            self.chat = ChatTemplate(self.tokenizer, PLAIN_TEMPLATE, {})
            self._chat_prefix = self._text_prefix  # the plain template leaves BOS to the tokenizer
            self.notes.append(
                "the tokenizer has no chat template: conversations are written as 'User: ...' and 'Assistant: ...'"
            )
        return self.chat

    def example(self, record: Record) -> Example | Dropped:
        """One record as an example, or why it is left out.

        Raises:
            PreftuneError: if the record cannot be rendered faithfully.
        """
        outcome = self.outcomes([record])[0]
        if isinstance(outcome, Refused):
            raise PreftuneError(f"{outcome.where}: {outcome.reason}")
        return outcome

    def outcomes(self, records: Sequence[Record]) -> list[Example | Dropped | Refused]:
        """Each record as an example, or why there is none. All their texts are tokenised in one call.

        Raises:
            PreftuneError: for what concerns all records: a tokenizer without an end token.
        """
        plans = [_attempt(record.where, self._plan, record) for record in records]
        texts = {
            text: None
            for plan in plans
            if isinstance(plan, _Plan)
            for rendered in plan.rendered
            for text in (rendered.text, *rendered.starts)
        }
        ids = dict(zip(texts, self._tokenize(list(texts)), strict=True))
        return [
            _attempt(plan.record.where, self._assemble, plan, ids) if isinstance(plan, _Plan) else plan
            for plan in plans
        ]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, **options)["input_ids"]
        return ids

    def _plan(self, record: Record) -> _Plan:
        given = _given(record)
        texts = [record.prompt, *(response.text for response in given)]
        is_chat = self.config.text_as_chat or any(not isinstance(text, str) for text in texts)
        plan = self._plan_chat(record, given) if is_chat else self._plan_text(record, given)
        for rendered in plan.rendered:
            try:
                rendered.text.encode()
            except UnicodeEncodeError:
                raise _LeftOutError("its text is broken Unicode (a surrogate without its pair)") from None
        return plan

    def _plan_text(self, record: Record, given: Sequence[_Given]) -> _Plan:
        end = self.tokenizer.eos_token
        if end is None:
            raise PreftuneError(
                "the tokenizer has no eos_token, so a model could not learn to stop: set tokenizer.eos_token"
            )
        prompt = str(record.prompt)
        begin = "".join(self.tokenizer.convert_ids_to_tokens(self._text_prefix)) or self.tokenizer.bos_token or ""
        self._check_typed("the prompt", [prompt.removeprefix(begin)])
        for response in given:
            self._check_typed(response.name, [str(response.text).removesuffix(end)])
        rendered = [Rendered(prompt + str(response.text), (prompt,)) for response in given]
        return _Plan(record, given, rendered, self._text_prefix, self.tokenizer.eos_token_id, None, MEND_TEXT)

    def _plan_chat(self, record: Record, given: Sequence[_Given]) -> _Plan:
        chat = self.use_chat()
        prompt = _turns(record.prompt, "user")
        responses = [_turns(response.text, "assistant") for response in given]
        self._check_typed("the prompt", [turn.content for turn in prompt])
        for response, turns in zip(given, responses, strict=True):
            self._check_typed(response.name, [turn.content for turn in turns])
        rendered = chat.responses(prompt, responses)
        return _Plan(record, given, rendered, self._chat_prefix, chat.end_id, chat.turn_end_id, MEND_CHAT)

    def _check_typed(self, name: str, texts: Iterable[str]) -> None:
        """Leave out a record in whose text a control token stands: it would end twice, begin twice, or change turns."""
        if found := self._control.first(texts):
            raise _LeftOutError(f"the text of {name} holds the {found}")

    def _assemble(self, plan: _Plan, ids: Mapping[str, list[int]]) -> Example:
        prompt = ids[plan.rendered[0].starts[0]]
        wholes = [ids[rendered.text] for rendered in plan.rendered]
        cut = min(
            self._boundary(prompt, whole, given.name, plan.mend)
            for whole, given in zip(wholes, plan.given, strict=True)
        )
        responses = [self._response(plan, i, whole, cut, ids) for i, whole in enumerate(wholes)]
        prompt_T, fitted = self._fit(self._prompt(plan, prompt[:cut]), responses)
        _check_responses(plan, fitted)
        confidence, gap = 1.0, math.nan
        if isinstance(plan.record, Preference | Judged) and plan.record.confidence is not None:
            confidence = plan.record.confidence
        if isinstance(plan.record, Preference) and plan.record.gap is not None:
            gap = plan.record.gap
        where, weight = plan.record.where, plan.record.weight
        return Example(prompt_T, tuple(fitted), row=where.row, weight=weight, confidence=confidence, gap=gap)

    def _prompt(self, plan: _Plan, prompt: list[int]) -> Ids:
        bos = self.tokenizer.bos_token_id
        if prompt[: len(plan.prefix)] != plan.prefix:
            prompt = [*plan.prefix, *prompt]
        if not prompt:
            if bos is None:
                raise _LeftOutError("the prompt is empty, and the tokenizer has no bos_token to begin with")
            prompt = [bos]
        if bos is not None and prompt[:2] == [bos, bos]:
            raise RenderingError(f"the prompt begins with {self.tokenizer.bos_token!r} twice")
        return np.array(prompt, dtype=np.int32)

    def _boundary(self, start: list[int], whole: list[int], name: str, mend: str) -> int:
        """Number of tokens of `whole` before the answer that follows `start`."""
        shared = shared_length(start, whole)
        if shared == len(start) or (self.config.boundary == "shift" and shared > 0):
            return shared
        before, joined = self._show(start[shared:]), self._show(whole[shared : shared + 1])
        raise RenderingError(
            f"the tokenizer joins {before!r} at the end of the prompt and the start of {name} into {joined!r} ({mend})"
        )

    def _show(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids)
        if not text or "\ufffd" in text:  # white space that decoding strips, or part of a character
            text = " ".join(self.tokenizer.convert_ids_to_tokens(ids))
        return text[:40]

    def _response(self, plan: _Plan, index: int, whole: list[int], cut: int, ids: Mapping[str, list[int]]) -> Response:
        name, role, score, _ = plan.given[index]
        starts = plan.rendered[index].starts
        ended = whole if whole[-1:] == [plan.end_id] else [*whole, plan.end_id]
        ids_T = np.array(ended[cut:], dtype=np.int32)
        if len(starts) == 1:
            return Response(ids_T, role, score)
        later = f"a later answer of {name}"
        begins = [cut, *(self._boundary(ids[start], whole, later, plan.mend) for start in starts[1:])]
        targets_T = np.zeros(len(ids_T), dtype=np.bool_)
        for begin, following in pairwise(begins):
            if plan.turn_end_id is None or plan.turn_end_id not in ended[begin:following]:
                raise RenderingError(f"{name} has several turns, but the chat template ends answers with no token")
            targets_T[begin - cut : ended.index(plan.turn_end_id, begin) + 1 - cut] = True
        targets_T[begins[-1] - cut :] = True
        return Response(ids_T, role, score, targets=targets_T)

    def _fit(self, prompt_T: Ids, responses: list[Response]) -> tuple[Ids, list[Response]]:
        """Prompt and responses, cut to `max_length`."""
        limit = self.config.max_length
        longest = max(len(response.ids) for response in responses)
        if limit is None or len(prompt_T) + longest <= limit:
            return prompt_T, responses
        if self.config.truncate == "drop":
            raise _LeftOutError(f"prompt and response are longer than max_length={limit} tokens")
        if self.config.truncate == "prompt_head":
            head_T = prompt_T[:1] if prompt_T[0] == self.tokenizer.bos_token_id else prompt_T[:0]
            room = limit - longest - len(head_T)
            if room < 1:
                raise _LeftOutError(f"a response alone is longer than max_length={limit} tokens")
            return np.concatenate([head_T, prompt_T[-room:]]), responses
        room = limit - len(prompt_T)
        if room < 1:
            raise _LeftOutError(f"the prompt alone is longer than max_length={limit} tokens")
        return prompt_T, [
            replace(r, ids=r.ids[:room], targets=None if r.targets is None else r.targets[:room]) for r in responses
        ]


def _attempt(where: Where, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Dropped | Refused:
    try:
        return make(*args, **kwargs)
    except _LeftOutError as drop:
        return Dropped(where, str(drop))
    except RenderingError as refusal:
        return Refused(where, str(refusal))


def _given(record: Record) -> list[_Given]:
    """The responses of a record, none of which has an empty answer."""
    if isinstance(record, Preference):
        given = [
            _Given("chosen", Role.CHOSEN, math.nan, record.chosen),
            _Given("rejected", Role.REJECTED, math.nan, record.rejected),
        ]
    elif isinstance(record, Judged):
        given = [_Given("response", Role.LABELLED, 1.0 if record.good else 0.0, record.response)]
    elif isinstance(record, Ranking):
        scored = enumerate(zip(record.responses, record.scores, strict=True))
        given = [_Given(f"response {i}", Role.RANKED, score, text) for i, (text, score) in scored]
    elif isinstance(record, PromptOnly):
        return [_Given("an answer", Role.CHOSEN, math.nan, "")]  # an end token stands where answers will
    else:
        given = [_Given("response", Role.CHOSEN, math.nan, record.response)]
    for name, _, _, text in given:
        if not all(turn.content.strip() for turn in _turns(text, "assistant") if turn.role == "assistant"):
            raise _LeftOutError(f"{name} is empty")
    return given


def _turns(text: Text, role: str) -> tuple[Message, ...]:
    return (Message(role, text),) if isinstance(text, str) else text


def _check_responses(plan: _Plan, responses: Sequence[Response]) -> None:
    """Leave out a record that says nothing: a response without text, or two that are the same."""
    if isinstance(plan.record, PromptOnly):
        return
    for response, given in zip(responses, plan.given, strict=True):
        if response.length == 0 or response.ids[0] == plan.end_id:
            raise _LeftOutError(f"{given.name} is empty in tokens")
    for (one, first), (other, second) in combinations(zip(responses, plan.given, strict=True), 2):
        if np.array_equal(one.ids, other.ids) and (first.role, first.score) != (second.role, second.score):
            raise _LeftOutError(f"{first.name} and {second.name} are identical in tokens")
