"""The layouts of rows that are in use, how each is recognised, and how a row of it is read into the normal form."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from preftune.data.fields import (
    Fields,
    Turns,
    Unfit,
    as_turns,
    check_roles,
    get,
    get_optional,
    names,
    one_form,
    read_flag,
    read_number,
    read_numbers,
    read_text,
    read_text_or_turns,
    read_turns,
    read_weight,
    shown,
    with_system,
)
from preftune.data.records import Demonstration, Judged, Message, Preference, PromptOnly, Ranking, Record, Text, Where
from preftune.errors import PreftuneError

NEAR = 2  # layouts that a message describes; the others it names
HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class Layout:
    """A known layout of rows.

    Attributes:
        name: what `layout` overrides call it.
        keys: columns that it needs, alternatives divided by "|".
        read: reads one row; raises Unfit.
        fits: whether a row that has the keys is of this layout.
    """

    name: str
    keys: tuple[str, ...]
    read: Callable[[Fields, Where], Record]
    fits: Callable[[Fields], bool] = lambda row: True

    def missing(self, row: Fields) -> list[str]:
        """Keys that the row lacks."""
        return [key for key in self.keys if not any(name in row for name in key.split("|"))]

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(key.replace('|', ' or ') for key in self.keys)})"


def by_name(name: str) -> Layout:
    """The layout of this name.

    Raises:
        PreftuneError: if there is none; lists all.
    """
    for layout in LAYOUTS:
        if layout.name == name:
            return layout
    close = difflib.get_close_matches(name, [layout.name for layout in LAYOUTS], 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise PreftuneError(
        f"there is no layout {name!r}{hint}; known layouts: {', '.join(layout.name for layout in LAYOUTS)}"
    )


def recognise(row: Fields) -> Layout:
    """The first layout that the row fits: by its columns, and for HH by its text.

    Raises:
        Unfit: if it fits none; says which columns were found, what the closest layout lacks, and lists all.
    """
    paired = "chosen" in row or "rejected" in row
    # A row with half a pair must not pass as a demonstration.
    able = [layout for layout in LAYOUTS if not paired or "chosen" in layout.keys]
    if OTHERS & row.keys():  # nor one with half of something else as a prompt alone
        able = [layout for layout in able if layout.name != PROMPTS]
    for layout in able:
        if not layout.missing(row) and layout.fits(row):
            return layout
    # those that lack least come first; where none has anything of the row, the order above
    near = sorted(able, key=lambda layout: min(len(layout.missing(row)) / len(layout.keys), 1))
    closest = near[0]
    missing = [key.replace("|", " or ") for key in closest.missing(row)]
    hint = f" ({closest.name} lacks {' and '.join(missing)})" if len(missing) < len(closest.keys) else ""
    raise Unfit(f"the columns {names(row, most=6)} fit no known layout{hint}, expected those of one of {_near(near)}")


def _near(layouts: Sequence[Layout]) -> str:
    """The first few with their columns, and the names of the others."""
    others = ", ".join(layout.name for layout in layouts[NEAR:])
    return ", ".join(map(str, layouts[:NEAR])) + (f", or of {others}" if others else "")


# --- pairs ------------------------------------------------------------------------------------------------------------


def _prompt_pair(row: Fields, where: Where) -> Preference:
    """TRL, standard or conversational, with explicit prompt; UltraFeedback, whose responses repeat the prompt."""
    prompt = read_text_or_turns(*get(row, "prompt|question"))
    return _explicit_pair(row, where, prompt)


def _alpaca_pair(row: Fields, where: Where) -> Preference:
    return _explicit_pair(row, where, _alpaca_prompt(row))


def _chat_pair(row: Fields, where: Where) -> Preference:
    """ShareGPT, LLaMA-Factory: the conversation so far, and two ways to go on."""
    return _explicit_pair(row, where, read_turns(*get(row, "conversations|messages")))


def _explicit_pair(row: Fields, where: Where, prompt: Text) -> Preference:
    chosen, rejected = (read_text_or_turns(*get(row, key)) for key in ("chosen", "rejected"))
    if isinstance(chosen, tuple) and isinstance(rejected, tuple) and _repeats(chosen) and _repeats(rejected):
        return _pair(row, where, *_after_prompt(as_turns(prompt, "user"), chosen, rejected))
    return _pair(row, where, prompt, chosen, rejected)


def _implicit_pair(row: Fields, where: Where) -> Preference:
    """TRL with implicit prompt: what chosen and rejected begin with alike."""
    chosen, rejected = (read_text_or_turns(*get(row, key)) for key in ("chosen", "rejected"))
    if isinstance(chosen, tuple) and isinstance(rejected, tuple):
        return _pair(row, where, *_split_turns(chosen, rejected))
    if isinstance(chosen, str) and isinstance(rejected, str):
        cut = shared_prefix(chosen, rejected)
        if not chosen[:cut].strip():
            raise Unfit("chosen and rejected do not begin alike, expected a shared prompt or a prompt column")
        return _pair(row, where, chosen[:cut], chosen[cut:], rejected[cut:])
    raise Unfit("one of chosen and rejected is text and the other is turns, expected both alike")


def _hh_pair(row: Fields, where: Where) -> Preference:
    chosen, rejected = (_hh_turns(*get(row, key)) for key in ("chosen", "rejected"))
    return _pair(row, where, *_split_turns(chosen, rejected))


def _looks_like_hh(row: Fields) -> bool:
    return any(isinstance(row[key], str) and row[key].lstrip().startswith("Human:") for key in ("chosen", "rejected"))


def _hh_turns(value: Any, field: str) -> Turns:
    """The turns of "\\n\\nHuman: ... \\n\\nAssistant: ..."."""
    before, *rest = HH_TURN.split(read_text(value, field).strip())
    if before or not rest:
        raise Unfit(f'{field} begins with {shown(before)}, expected "Human:"')
    return tuple(
        Message(HH_ROLES[speaker], read_text(said.strip(), f"{field} turn {turn}"))
        for turn, (speaker, said) in enumerate(zip(rest[::2], rest[1::2], strict=True))
    )


def _pair(row: Fields, where: Where, prompt: Text, chosen: Text, rejected: Text) -> Preference:
    prompt, (chosen, rejected) = one_form(row, prompt, {"chosen": chosen, "rejected": rejected})
    return Preference(prompt, chosen, rejected, where, read_weight(row), _confidence(row), _gap(row))


def _confidence(row: Fields) -> float | None:
    """The `confidence` column, or else the share of annotators who chose as the row says."""
    confidence = read_number(row, "confidence", low=0, high=1)
    votes = [read_number(row, key, low=0) for key in ("chosen_votes", "rejected_votes")]
    if votes == [None, None]:
        return confidence
    right, wrong = votes
    if right is None or wrong is None:
        raise Unfit("only one of chosen_votes and rejected_votes is given, expected both or none")
    if confidence is not None:
        raise Unfit("confidence and votes are given, expected one of them")
    if not 0 < right + wrong < math.inf:
        raise Unfit("chosen_votes and rejected_votes sum to nothing, expected at least one vote")
    return right / (right + wrong)


def _gap(row: Fields) -> float | None:
    """The `gap` column, or else the difference of the two scores (UltraFeedback)."""
    gap = read_number(row, "gap")
    better, worse = read_number(row, "score_chosen"), read_number(row, "score_rejected")
    if gap is not None or better is None or worse is None:
        return gap
    if not math.isfinite(better - worse):
        raise Unfit("score_chosen minus score_rejected is infinite, expected a finite difference")
    return better - worse


# --- what chosen and rejected share -----------------------------------------------------------------------------------


def shared_prefix(chosen: str, rejected: str) -> int:
    """Length of the longest common beginning of two texts that ends where words and tokens do.

    That is before spaces (tokenizers join a space to the word after it) or after line ends (they join those to what
    comes before), never inside a word; and neither text is used up. 0 if there is no such place.

    Example:
        >>> text = "Q: How many?\\nA: about 12"
        >>> text[: shared_prefix(text, "Q: How many?\\nA: about 13")]
        'Q: How many?\\nA: about'
    """
    alike = _alike(chosen, rejected)
    for blank in reversed(list(re.finditer(r"\s+", chosen[:alike]))):
        after_line = blank.start() + blank.group().rfind("\n") + 1
        goes_on = any(text[blank.end() : blank.end() + 1].isspace() for text in (chosen, rejected))
        cut = after_line if after_line > blank.start() and not goes_on else blank.start()
        if chosen[cut:].strip() and rejected[cut:].strip():
            return cut
    return 0


def _alike(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Length of the longest common beginning."""
    differing = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differing, min(len(a), len(b)))


def _split_turns(chosen: Turns, rejected: Turns) -> tuple[Turns, Turns, Turns]:
    """Shared prompt and the two responses. Both responses begin with an assistant turn."""
    for field, turns in (("chosen", chosen), ("rejected", rejected)):
        check_roles((field, turns))
    cut = min(_alike(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    while cut > 0 and not (chosen[cut].role == rejected[cut].role == "assistant"):
        cut -= 1
    if cut <= 0:
        raise Unfit("chosen and rejected do not begin with the same turns, expected a shared prompt or a prompt column")
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _repeats(response: Turns) -> bool:
    return response[0].role in ("system", "user")


def _after_prompt(prompt: Turns, chosen: Turns, rejected: Turns) -> tuple[Turns, Turns, Turns]:
    """The same for responses that repeat the prompt, which may be their first turns (after a system turn) or last."""
    shared, chosen, rejected = _split_turns(chosen, rejected)
    first = 0 if prompt[0].role == "system" or shared[0].role != "system" else 1
    places = (shared[first : first + len(prompt)], shared[-len(prompt) :])
    if not any(_stripped(place) == _stripped(prompt) for place in places):
        raise Unfit(
            "chosen and rejected begin with a conversation that is not the prompt, expected the prompt or the answer"
        )
    return shared, chosen, rejected


def _stripped(turns: Turns) -> list[tuple[str, str]]:
    return [(turn.role, turn.content.strip()) for turn in turns]


# --- rankings ---------------------------------------------------------------------------------------------------------


def _ranking(read_prompt: Callable[[Fields], Text]) -> Callable[[Fields, Where], Ranking]:
    def ranking(row: Fields, where: Where) -> Ranking:
        values, field = get(row, _RANKED)
        if not isinstance(values, list | tuple) or len(values) < 2:
            raise Unfit(f"{field} is {shown(values)}, expected a list of two or more responses")
        scores, scored = read_numbers(*get(row, _ORDER))
        if len(scores) != len(values):
            raise Unfit(f"{scored} has {len(scores)} entries, expected one for each of the {len(values)} {field}")
        if scored in ("ranks", "ranking"):  # 1 is the best
            scores = [-rank for rank in scores]
        named = ((f"{field} entry {i}", value) for i, value in enumerate(values))
        texts = {name: read_text_or_turns(value, name) for name, value in named}
        prompt, responses = one_form(row, read_prompt(row), texts)
        return Ranking(prompt, tuple(responses), tuple(scores), where, read_weight(row))

    return ranking


# --- verdicts and demonstrations --------------------------------------------------------------------------------------


def _judged(read: Callable[[Fields], tuple[Text, Text]]) -> Callable[[Fields, Where], Judged]:
    def judged(row: Fields, where: Where) -> Judged:
        good = read_flag(*get(row, "label|kto_tag"))
        prompt, response = read(row)
        confidence = read_number(row, "confidence", low=0, high=1)
        return Judged(prompt, response, good, where, read_weight(row), confidence)

    return judged


def _demonstration(read: Callable[[Fields], tuple[Text, Text]]) -> Callable[[Fields, Where], Demonstration]:
    def demonstration(row: Fields, where: Where) -> Demonstration:
        prompt, response = read(row)
        return Demonstration(prompt, response, where, read_weight(row))

    return demonstration


def _prompt_answer(row: Fields) -> tuple[Text, Text]:
    value, field = get(row, "completion|response|answer")
    prompt = read_text_or_turns(*get(row, "prompt|question"))
    prompt, (response,) = one_form(row, prompt, {field: read_text_or_turns(value, field)})
    return prompt, response


def _alpaca_answer(row: Fields) -> tuple[Text, Text]:
    prompt, (response,) = one_form(row, _alpaca_prompt(row), {"output": read_text(*get(row, "output"))})
    return prompt, response


def _chat_last(row: Fields) -> tuple[Text, Text]:
    """A verdict is on the last answer; all before it is the prompt."""
    turns = _whole_chat(row)
    return turns[:-1], turns[-1:]


def _chat_all(row: Fields) -> tuple[Text, Text]:
    """A demonstration shows every answer of the conversation: the response begins with the first."""
    turns = _whole_chat(row)
    first = next(i for i, turn in enumerate(turns) if turn.role == "assistant")
    return turns[:first], turns[first:]


def _whole_chat(row: Fields) -> Turns:
    value, field = get(row, "conversations|messages")
    turns = read_turns(value, field)
    check_roles((field, turns))
    return with_system(row, turns)


def _alpaca_prompt(row: Fields) -> Turns:
    """Earlier exchanges in `history`, then instruction and input on lines of their own."""
    turns = []
    history = get_optional(row, "history") or []
    if not isinstance(history, list | tuple):
        raise Unfit(f"history is {shown(history)}, expected a list of exchanges")
    for i, exchange in enumerate(history):
        if not isinstance(exchange, list | tuple) or len(exchange) != 2:
            raise Unfit(f"history entry {i} is {shown(exchange)}, expected a list of question and answer")
        for role, said in zip(("user", "assistant"), exchange, strict=True):
            turns.append(Message(role, read_text(said, f"history entry {i}, {role}")))
    query = [read_text(row[key], key) for key in ("instruction", "input") if get_optional(row, key) is not None]
    if not query:
        raise Unfit(f"instruction is {shown(row.get('instruction'))}, expected text")
    return (*turns, Message("user", "\n".join(query)))


def _prompt_only(row: Fields, where: Where) -> PromptOnly:
    """A prompt, and the right answer if the row has one under a name that no answer to learn from goes by."""
    right = next((name for name in RIGHT if isinstance(row.get(name), str)), None)
    prompt = read_text_or_turns(*get(row, "prompt|question"))
    return PromptOnly(prompt, where, read_weight(row), None if right is None else read_text(row[right], right))


PROMPTS, RIGHT = "prompts", ("reference", "ground_truth", "solution")
# Columns that say that a row is more than a prompt.
OTHERS = {"responses", "completions", "scores", "ratings", "rewards", "ranks", "ranking", "label", "kto_tag"}
OTHERS |= {"completion", "response", "answer", "output"}
_PROMPT, _ANSWER = "prompt|question", "completion|response|answer"
_CHAT, _VERDICT = "conversations|messages", "label|kto_tag"
_RANKED, _ORDER = "responses|completions", "scores|ratings|rewards|ranks|ranking"

# Order decides where a row fits several: what asks for more columns comes first.
LAYOUTS = (
    Layout("prompt-pairs", (_PROMPT, "chosen", "rejected"), _prompt_pair),
    Layout("alpaca-pairs", ("instruction", "chosen", "rejected"), _alpaca_pair),
    Layout("chat-pairs", (_CHAT, "chosen", "rejected"), _chat_pair),
    Layout("hh", ("chosen", "rejected"), _hh_pair, _looks_like_hh),
    Layout("pairs", ("chosen", "rejected"), _implicit_pair),
    Layout("prompt-rankings", (_PROMPT, _RANKED, _ORDER), _ranking(lambda row: read_text_or_turns(*get(row, _PROMPT)))),
    Layout("alpaca-rankings", ("instruction", _RANKED, _ORDER), _ranking(_alpaca_prompt)),
    Layout("chat-rankings", (_CHAT, _RANKED, _ORDER), _ranking(lambda row: read_turns(*get(row, _CHAT)))),
    Layout("prompt-labels", (_PROMPT, _ANSWER, _VERDICT), _judged(_prompt_answer)),
    Layout("alpaca-labels", ("instruction", "output", _VERDICT), _judged(_alpaca_answer)),
    Layout("chat-labels", (_CHAT, _VERDICT), _judged(_chat_last)),
    Layout("prompt-answers", (_PROMPT, _ANSWER), _demonstration(_prompt_answer)),
    Layout("alpaca", ("instruction", "output"), _demonstration(_alpaca_answer)),
    Layout("chat", (_CHAT,), _demonstration(_chat_all)),
    Layout(PROMPTS, (_PROMPT,), _prompt_only),
)
