"""Cases: what an optimiser is trained on. A pair of rewrites -> rows with more or less known, asked in two forms.

A prompt is asked as it is (generation), or with two known answers as options A and B (multiple choice); the optimiser
is shown what a generator answered or not, and the right answer or not: eight case types (FIPO, arXiv 2402.11811,
sections 3.2 and 3.3). Iterative learning adds rows that teach it to answer prompts and to tell better rewrites.

Two things differ from the authors' code. Options stay a part of the prompt and of its rewrites, as in use nothing else
brings them; theirs takes them out of the rewrites. And a naive answer that is right all the same is known as such.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from preftune.data.records import Drops, Message, Preference, Text, Where
from preftune.errors import PreftuneError
from preftune.prompting.naming import prompt_id
from preftune.prompting.records import PromptPair
from preftune.prompting.rewriter import default_limit
from preftune.prompting.template import Template, words_in

Kind = Literal["rewrite", "instruction", "discrimination"]
Form = Literal["generation", "multiple_choice"]
Words = Literal["rounded", "use", "exact"]

LETTERS = ("A", "B")
ANSWER_BEGINS = "\n\n"  # of a plain prompt that is to be answered, not rewritten
ROUND = 10  # words that a limit is rounded up to
CASE_TYPES: tuple[tuple[Form, bool, bool], ...] = tuple(
    (form, response, truth)
    for form in ("generation", "multiple_choice")
    for response in (False, True)
    for truth in (False, True)
)  # form, shows the naive response, shows the ground truth
_OPTIONS = re.compile(r"^\(?A[).:] .*^\(?B[).:] ", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row, with all that is needed to ask it again of another naive prompt or with another response.

    Attributes:
        kind: rewrite (chosen and rejected are rewrites), instruction (they are answers), or discrimination (they are
            rewrites, and the letters A and B are what is learned).
        form: of the prompt.
        source: id of the naive prompt that it was made from.
        prompt: the naive prompt as it stands now, options included; rounds of iterative learning replace it.
        original: the naive prompt as people wrote it, options included.
        chosen: the better rewrite, or answer.
        rejected: the worse one.
        words: most words that are asked for.
        where: where it came from, for messages.
        response: what a generator answered to `prompt`: a letter in multiple choice; None if nothing is known.
        ground_truth: the right answer, likewise.
        shows_response: the optimiser is shown `response`.
        shows_ground_truth: it is shown `ground_truth`.
        options: of a multiple choice that was made of two answers: their texts.
        chosen_first: of a discrimination: the better rewrite is shown first.
        weight: in the loss.
        task: what the prompt belongs to.
    """

    kind: Kind
    form: Form
    source: str
    prompt: str
    original: str
    chosen: str
    rejected: str
    words: int
    where: Where
    response: str | None = None
    ground_truth: str | None = None
    shows_response: bool = False
    shows_ground_truth: bool = False
    options: tuple[str, ...] = ()
    chosen_first: bool = True
    weight: float = 1.0
    task: str | None = None

    @property
    def response_is_right(self) -> bool | None:
        """True if the generator's answer is the right one, to the letter; None if either is not known."""
        if self.response is None or self.ground_truth is None:
            return None
        return _same(self.response, self.ground_truth)

    @property
    def type(self) -> str:
        """Its type in a word: "generation", "multiple_choice+response+truth", "instruction", "discrimination"."""
        if self.kind != "rewrite":
            return self.kind
        return case_type(self.form, self.shows_response, self.shows_ground_truth)

    def completed(self, rewrite: str) -> str:
        """A rewrite with the options, if it lost them."""
        block = options_block(self.options)
        return rewrite if block.strip() in rewrite else rewrite.rstrip() + block


def case_type(form: Form, response: bool, truth: bool) -> str:
    """The name of one of the eight case types.

    Example:
        >>> case_type("generation", True, False)
        'generation+response'
    """
    return form + "+response" * response + "+truth" * truth


def case_input(case: Case, template: Template, chat: bool) -> Text:
    """What the model reads: a user's turn, or plain text that ends where a response begins."""
    if case.kind == "instruction":
        text = template.instruction_input(case.prompt, case.words)
        return template.asked(text, chat) if chat else text + ANSWER_BEGINS
    truth = case.ground_truth if case.shows_ground_truth else None
    if case.kind == "discrimination":
        first, second = (case.chosen, case.rejected) if case.chosen_first else (case.rejected, case.chosen)
        text = template.discriminator_input(case.original, first, second, ground_truth=truth)
    else:
        response = case.response if case.shows_response else None
        text = template.optimizer_input(case.prompt, case.words, response=response, ground_truth=truth)
    return template.asked(text, chat)


def render(case: Case, template: Template, chat: bool) -> Preference:
    """A case as a pair that any objective learns from.

    Args:
        case: the row.
        template: how it is asked.
        chat: as turns of a conversation; else as plain text.
    """
    chosen, rejected = case.chosen, case.rejected
    if case.kind == "discrimination":
        letters = (template.first, template.second)
        chosen, rejected = letters if case.chosen_first else letters[::-1]
    answers = (_answer(chosen, chat), _answer(rejected, chat))
    return Preference(case_input(case, template, chat), *answers, case.where, weight=case.weight)


def diversify(
    pairs: Iterable[PromptPair],
    *,
    seed: int = 0,
    each: int = 1,
    multiple_choice: float = 0.5,
    right_naive: float = 0.2,
    words: Words = "rounded",
    extra: bool = False,
    drops: Drops | None = None,
) -> Iterator[Case]:
    """Cases of pairs of rewrites. What a pair becomes depends on the seed and on itself alone, never on its place.

    Args:
        pairs: rewrites.
        seed: another seed, other draws.
        each: different case types of each pair, from 1 to 8; a pair has fewer where less is known of its answer.
        multiple_choice: how often a prompt whose naive response and ground truth are known (and differ) becomes a
            multiple choice between them; only where `each` is 1 (FIPO: 0.5).
        right_naive: how often the naive answer to such a multiple choice is the right one, so that an optimiser does
            not take it for wrong (FIPO: 0.2).
        words: the limit on a rewrite. "rounded": the longer of the two, rounded up to tens, so that both keep it and
            it tells neither the better one nor its length; "use": as where nobody says, or more if they need more;
            "exact": the words of the better one, as FIPO's code has it, which no user of the optimiser can know.
        extra: also a row of each pair for iterative learning: to answer the prompt, or to tell the better rewrite.
        drops: what becomes of pairs whose rewrites are the same; the first one is an error if not given.

    Raises:
        PreftuneError: if a setting is out of range, or two rewrites are the same.
    """
    _check(each, multiple_choice, right_naive)
    drops = Drops("error") if drops is None else drops
    for pair in pairs:
        if _same(pair.chosen, pair.rejected):
            drops.add(pair.where, "chosen and rejected are identical")
            continue
        draw = random.Random(f"{seed} {pair.id} {prompt_id(pair.chosen)} {prompt_id(pair.rejected)}")
        forms = _forms(pair, draw, right_naive, words)
        found = _drawn(forms, draw, each, multiple_choice)
        yield from found
        if extra:
            yield _extra(forms[found[0].form], draw, words)


def options_block(options: Sequence[str]) -> str:
    """Options as they stand below a prompt."""
    return "".join(f"\n{letter}: {text.strip()}" for letter, text in zip(LETTERS[: len(options)], options, strict=True))


def _forms(pair: PromptPair, draw: random.Random, right_naive: float, words: Words) -> dict[Form, Case]:
    """The pair in the forms that it can have; nothing is shown yet."""
    plain = Case(
        kind="rewrite",
        form="multiple_choice" if _OPTIONS.search(pair.prompt) else "generation",
        source=pair.id,
        prompt=pair.prompt,
        original=pair.prompt,
        chosen=pair.chosen,
        rejected=pair.rejected,
        words=word_limit(pair.prompt, pair.chosen, pair.rejected, words),
        where=pair.where,
        response=pair.naive_response,
        ground_truth=pair.ground_truth,
        task=pair.task,
    )
    swap, is_right = draw.random() < 0.5, draw.random() < right_naive  # drawn always: what follows stays the same
    naive, right = pair.naive_response, pair.ground_truth
    if plain.form == "multiple_choice" or naive is None or right is None or _same(naive, right):
        return {plain.form: plain}
    options = (right, naive) if swap else (naive, right)
    letter, other = LETTERS if swap else LETTERS[::-1]
    block = options_block(options)
    texts = {name: getattr(pair, name).rstrip() + block for name in ("prompt", "chosen", "rejected")}
    made = Case(
        kind="rewrite",
        form="multiple_choice",
        source=pair.id,
        original=texts["prompt"],
        words=word_limit(texts["prompt"], texts["chosen"], texts["rejected"], words),
        where=pair.where,
        response=letter if is_right else other,
        ground_truth=letter,
        options=options,
        task=pair.task,
        **texts,
    )
    return {"generation": plain, "multiple_choice": made}


def word_limit(prompt: str, chosen: str, rejected: str, words: Words) -> int:
    """Most words that a rewrite is allowed in training; see `diversify`.

    Example:
        >>> prompt, chosen, rejected = "Add 2 and 3", "Add 2 and 3, step by step.", "Sum?"
        >>> [word_limit(prompt, chosen, rejected, how) for how in ("rounded", "use", "exact")]
        [10, 44, 7]
    """
    if words == "exact":
        return words_in(chosen)
    longer = max(words_in(chosen), words_in(rejected))
    rounded = math.ceil(longer / ROUND) * ROUND
    return max(rounded, default_limit(prompt)) if words == "use" else rounded


def _drawn(forms: Mapping[Form, Case], draw: random.Random, each: int, multiple_choice: float) -> list[Case]:
    """Some of the case types that a pair can have."""
    if each == 1 and len(forms) > 1:
        form: Form = "multiple_choice" if draw.random() < multiple_choice else "generation"
        forms = {form: forms[form]}
    able = [
        replace(forms[form], shows_response=response, shows_ground_truth=truth)
        for form, response, truth in CASE_TYPES
        if form in forms
        and (forms[form].response is not None or not response)
        and (forms[form].ground_truth is not None or not truth)
    ]
    return draw.sample(able, min(each, len(able)))


def _extra(case: Case, draw: random.Random, words: Words) -> Case:
    """A row that teaches to answer the prompt, or to tell the better rewrite."""
    chosen_first, answers = draw.random() < 0.5, draw.random() < 0.5
    right, wrong = case.ground_truth, case.response
    if case.options and right is not None:
        wrong = LETTERS[1 - LETTERS.index(right)]
    if answers and right is not None and wrong is not None and not _same(right, wrong):
        limit = word_limit(case.prompt, right, wrong, "exact" if words == "exact" else "rounded")
        return replace(case, kind="instruction", chosen=right, rejected=wrong, words=limit)
    return replace(case, kind="discrimination", chosen_first=chosen_first, shows_ground_truth=right is not None)


def _check(each: int, multiple_choice: float, right_naive: float) -> None:
    if not 1 <= each <= len(CASE_TYPES):
        raise PreftuneError(f"each is {each}, expected the number of case types of a pair, from 1 to {len(CASE_TYPES)}")
    for name, share in (("multiple_choice", multiple_choice), ("right_naive", right_naive)):
        if not 0 <= share <= 1:
            raise PreftuneError(f"{name} is {share:g}, expected a share from 0 to 1")


def _same(first: str, second: str) -> bool:
    return first.split() == second.split()


def _answer(text: str, chat: bool) -> Text:
    return (Message("assistant", text),) if chat else text
