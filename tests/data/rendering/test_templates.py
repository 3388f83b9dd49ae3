"""Every chat template with every kind of tokenizer: prompt and response ids are those of the whole rendering."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data.examples import Example
from preftune.data.records import Demonstration, Dropped, Message, Preference, Where
from preftune.data.rendering import Refused, Renderer, RenderingConfig
from preftune.errors import PreftuneError

FAMILIES = sorted(path.stem for path in (Path(__file__).parents[1] / "templates").glob("*.jinja"))
KINDS = ["byte_level", "sentencepiece_first", "sentencepiece_always", "unigram", "words"]
WHERE = Where("pairs.jsonl", 7)


def system(text):
    return Message("system", text)


def user(text):
    return Message("user", text)


def assistant(text):
    return Message("assistant", text)


def as_dicts(turns):
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def whole_ids(tokenizer, family, turns, **options):
    """What transformers makes of a conversation, up to the last end token, which is known by hand."""
    text = tokenizer.apply_chat_template(as_dicts(turns), tokenize=False, **options)
    if family.turns:
        kept, end, rest = text.rpartition(family.end)
        if kept.endswith(family.end + "\n"):  # Phi-3: EOS follows the end token
            kept, end, rest = text.removesuffix(family.end).rpartition(family.end)
        assert not rest.replace(family.eos, "").strip()
        return tokenizer(kept + end, add_special_tokens=False)["input_ids"]
    return [*tokenizer(text.removesuffix(family.tail), add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def prompt_ids(tokenizer, turns, **options):
    return tokenizer.apply_chat_template(
        as_dicts(turns), tokenize=True, return_dict=False, add_generation_prompt=True, **options
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_promise_01_prompt_and_response_ids_equal_the_full_rendering(name, kind, tokenizer_of, families):
    tokenizer, family = tokenizer_of(name, kind), families[name]
    prompts = [
        (user("What is the capital of France?"),),
        (user("Hello there!"), assistant("Hi, how are you?"), user("  What is the question?\n")),
    ]
    if family.system:
        prompts.append((system("You are a helpful assistant."), user("Is the weather nice?")))
    renderer = Renderer(tokenizer)
    for prompt in prompts:
        chosen, rejected = (assistant("The capital is Paris.\n\nYes."),), (assistant("No, the cat sat."),)
        example = renderer.example(Preference(prompt, chosen, rejected, WHERE))
        for response, given_turns in zip(example.responses, (chosen, rejected), strict=True):
            together = [*example.prompt, *response.ids]
            assert together == whole_ids(tokenizer, family, [*prompt, *given_turns])
            assert response.length >= 4 or kind == "words"
        expected = prompt_ids(tokenizer, prompt)
        if name == "deepseek_r1":  # it opens a thinking block that no given answer has
            opening = tokenizer("<think>\n", add_special_tokens=False)["input_ids"]
            expected = expected[: -len(opening)]
        assert example.prompt.tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_promise_02_at_most_one_bos_and_exactly_one_end_token(name, kind, tokenizer_of, families):
    tokenizer, family = tokenizer_of(name, kind), families[name]
    prompt = (user("Hello there!"),)
    example = Renderer(tokenizer).example(Demonstration(prompt, (assistant("The answer is 42."),), WHERE))
    text = tokenizer.apply_chat_template(as_dicts(prompt), tokenize=False)
    if family.bos:
        written = text.count(family.bos)
        assert example.prompt.tolist().count(tokenizer.bos_token_id) == written + (name == "smollm2")
        assert example.prompt[:2].tolist() != [tokenizer.bos_token_id] * 2
    end_id = tokenizer.convert_tokens_to_ids(family.end)
    (response,) = example.responses
    assert response.ids[-1] == end_id
    stops = {end_id, tokenizer.eos_token_id}
    assert sum(index in stops for index in response.ids.tolist()) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_of_a_response_of_several_turns_the_assistants_are_targets_each_with_its_end(
    name, kind, tokenizer_of, families
):
    tokenizer, family = tokenizer_of(name, kind), families[name]
    prompt = (user("Hello there!"),)
    response = (assistant("The cat sat."), user("What is the question?"), assistant("The answer is 42."))
    record = Demonstration(prompt, response, WHERE)
    if not family.turns:
        with pytest.raises(PreftuneError, match=r"pairs\.jsonl row 7.*several turns"):
            Renderer(tokenizer).example(record)
        return
    example = Renderer(tokenizer).example(record)
    (rendered,) = example.responses
    assert [*example.prompt, *rendered.ids] == whole_ids(tokenizer, family, [*prompt, *response])
    said = tokenizer.decode(rendered.ids[rendered.targets])
    assert "answer" in said
    assert "question" not in said
    runs = np.flatnonzero(np.diff(rendered.targets, prepend=False, append=False)).reshape(-1, 2)
    ends = ["<|end|>" if name == "gpt_oss" else family.end, family.end]
    assert [tokenizer.convert_ids_to_tokens(int(rendered.ids[stop - 1])) for _, stop in runs] == ends
    for (begin, _), before in zip(runs, (prompt, prompt + response[:2]), strict=True):
        # each answer stands after exactly what the policy is given when it is to say something
        expected = prompt_ids(tokenizer, before)
        given_T = [*example.prompt, *rendered.ids[:begin]]
        assert given_T == expected[: len(given_T)]
        left = tokenizer.decode(expected[len(given_T) :]).split()
        assert left == (["<think>"] if name == "deepseek_r1" else [])


def test_a_thinking_block_belongs_to_the_response_unless_the_prompt_closes_it(tokenizer_of):
    tokenizer = tokenizer_of("qwen3", "byte_level")
    record = Demonstration((user("Hello there!"),), (assistant("Yes."),), WHERE)
    open_ = Renderer(tokenizer)
    assert tokenizer.decode(open_.example(record).responses[0].ids) == "<think>\n\n</think>\n\nYes.<|im_end|>"
    assert "'<think>\\n\\n</think>\\n\\n'" in open_.notes[0]
    closed = Renderer(tokenizer, RenderingConfig(template_options={"enable_thinking": False}))
    example = closed.example(record)
    assert tokenizer.decode(example.responses[0].ids) == "Yes.<|im_end|>"
    assert tokenizer.decode(example.prompt).endswith("<think>\n\n</think>\n\n")
    assert closed.notes == []


def test_a_thinking_block_that_only_one_answer_begins_with_is_no_part_of_the_prompt(tokenizer_of):
    tokenizer = tokenizer_of("deepseek_r1", "byte_level")
    tokenizer_template = tokenizer.chat_template.replace('.split("</think>")[-1]', "")
    renderer = Renderer(tokenizer, RenderingConfig(chat_template=tokenizer_template))
    thought, plain = "<think>\nLet me think.\n</think>\n\nYes.", "Yes."
    both = renderer.example(Preference("Is it?", (assistant(thought),), (assistant(plain),), WHERE))
    assert tokenizer.decode(both.prompt).endswith("<｜Assistant｜>")  # noqa: RUF001
    assert tokenizer.decode(both.responses[0].ids).startswith("<think>\nLet me")
    alone = renderer.example(Demonstration("Is it?", (assistant(thought),), WHERE))
    assert tokenizer.decode(alone.prompt).endswith("<think>\n")
    assert tokenizer.decode(alone.responses[0].ids).startswith("Let me")


def test_a_thinking_block_opened_by_the_prompt_may_begin_the_answer(tokenizer_of):
    tokenizer = tokenizer_of("qwen3", "byte_level")
    opens = tokenizer.chat_template.replace(
        '{{- "<|im_start|>assistant\\n" -}}', '{{- "<|im_start|>assistant\\n<think>\\n" -}}'
    )
    assert opens != tokenizer.chat_template
    thought = (assistant("<think>\nLet me think.\n</think>\n\nYes."),)
    example = Renderer(tokenizer, RenderingConfig(chat_template=opens)).example(Demonstration("Is it?", thought, WHERE))
    assert tokenizer.decode(example.prompt).endswith("<|im_start|>assistant\n<think>\n")
    assert tokenizer.decode(example.responses[0].ids) == "Let me think.\n</think>\n\nYes.<|im_end|>"


def test_of_end_tokens_that_stand_together_the_last_is_where_generation_stops(tokenizer_of):
    tokenizer = tokenizer_of("gpt_oss", "byte_level")
    turns = (assistant("Yes."), user("Is it?"), assistant("No."))
    closing = tokenizer.chat_template.replace('"<|return|>" if loop.last else "<|end|>"', '"<|end|><|return|>"')
    assert closing != tokenizer.chat_template
    renderer = Renderer(tokenizer, RenderingConfig(chat_template=closing))
    (response,) = renderer.example(Demonstration("Is it?", turns, WHERE)).responses
    assert tokenizer.decode(response.ids[response.targets]).count("<|end|><|return|>") == 2
    assert response.ids[-1] == tokenizer.convert_tokens_to_ids("<|return|>")


@pytest.mark.parametrize(
    ("name", "prompt", "response", "reason"),
    [
        ("deepseek_r1", [user("Hi")], [assistant("<think>\nno\n</think>\n\nYes.")], "leaves out part of the response"),
        ("qwen3", [user("Hi")], [assistant("<think>a</think>b"), user("c"), assistant("d")], "leaves out part"),
        ("gemma2", [system("Be nice."), user("Hi")], [assistant("Yes.")], "System role not supported"),
        ("llama2", [user("Hi"), user("Ho")], [assistant("Yes.")], "roles must alternate"),
        ("mistral_v3", [system("S."), user("Hi")], [assistant("a"), user("b"), assistant("c")], "renders the prompt"),
        ("chatml", [user("Hi")], [user("c"), assistant("d")], "must begin and end with an assistant turn"),
    ],
)
def test_what_a_template_cannot_render_faithfully_is_refused_by_row(name, prompt, response, reason, tokenizer_of):
    renderer = Renderer(tokenizer_of(name, "byte_level"))
    with pytest.raises(PreftuneError, match=rf"pairs\.jsonl row 7: .*{reason}"):
        renderer.example(Demonstration(tuple(prompt), tuple(response), WHERE))


PIECES = ["\n", " ", "\n\n", "The", "N", "\u00e9", "\U0001f469\u200d\U0001f680", "\u0301", "\u200d", "\u00a0", "\ufeff"]
PIECES += ["<think>", "</think>", "</s>", "<|im_end|>"]
WORDS = st.sampled_from(["The", "cat", "Answer", "42", "not", "x.", "question", "S", "\u2116"])
CONTENT = st.lists(st.one_of(WORDS, st.sampled_from(PIECES), st.text(max_size=6)), min_size=1, max_size=6).map("".join)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(FAMILIES),
    kind=st.sampled_from(KINDS),
    asked=CONTENT,
    chosen=CONTENT,
    rejected=CONTENT,
    boundary=st.sampled_from(["exact", "shift"]),
    plain=st.booleans(),
)
def test_promise_01_any_text_gives_identity_or_an_error(
    name, kind, asked, chosen, rejected, boundary, plain, tokenizer_of, families
):
    tokenizer, family = tokenizer_of(name, kind), families[name]
    renderer = Renderer(tokenizer, RenderingConfig(boundary=boundary))
    turns = (asked, chosen, rejected) if plain else ((user(asked),), (assistant(chosen),), (assistant(rejected),))
    (outcome,) = renderer.outcomes([Preference(*turns, WHERE)])
    if not isinstance(outcome, Example):
        assert isinstance(outcome, Dropped | Refused)
        return
    stops = {tokenizer.eos_token_id} if plain else {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(family.end)}
    for response, text in zip(outcome.responses, (chosen, rejected), strict=True):
        together = [*outcome.prompt.tolist(), *response.ids.tolist()]
        if plain:
            expected = tokenizer(asked + text)["input_ids"]
            if tokenizer.bos_token_id is not None and expected[:2] == [tokenizer.bos_token_id] * 2:
                expected = expected[1:]  # the text begins with BOS already
            assert together in (expected, [*expected, tokenizer.eos_token_id])
        else:
            assert together == whole_ids(tokenizer, family, [user(asked), assistant(text)])
        assert sum(index in stops for index in response.ids.tolist()) == 1
        assert response.ids[-1] in stops
