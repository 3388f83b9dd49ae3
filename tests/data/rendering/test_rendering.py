"""What becomes of plain text, of long records and of records that say nothing; and what a user is told."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
from pydantic import ValidationError
from tokenizers.normalizers import Replace
from tokenizers.processors import TemplateProcessing

from preftune.data import dataset
from preftune.data.dataset import DataConfig, Examples
from preftune.data.examples import Example
from preftune.data.records import Demonstration, Dropped, Judged, Message, Preference, Where
from preftune.data.rendering import Renderer, RenderingConfig
from preftune.errors import PreftuneError
from preftune.objectives.batch import Role

WHERE = Where("pairs.jsonl", 7)
CHATML = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def pair(prompt="What is the capital?", chosen=" Paris is.", rejected=" No idea.", where=WHERE, **fields):
    return Preference(prompt, chosen, rejected, where, **fields)


def render(tokenizer, record, **config):
    return Renderer(tokenizer, RenderingConfig(**config)).example(record)


def render_all(records, tokenizer, config=None) -> Examples:
    """As a run does it."""
    data = DataConfig(held_out=0, rendering=config or RenderingConfig())
    return dataset.render(dataset.read(data, records, 0), tokenizer, data)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# What the records say arrives in the example


def test_a_pair_is_chosen_then_rejected_with_the_weights_of_its_record(plain_tokenizer):
    example = render(plain_tokenizer, pair(weight=2.0, confidence=0.8, gap=1.5))
    assert [response.role for response in example.responses] == [Role.CHOSEN, Role.REJECTED]
    assert (example.row, example.weight, example.confidence, example.gap) == (7, 2.0, 0.8, 1.5)
    assert all(math.isnan(response.score) for response in example.responses)
    assert example.prompt.dtype == example.responses[0].ids.dtype == np.int32
    unknown = render(plain_tokenizer, pair())
    assert unknown.confidence == 1.0
    assert math.isnan(unknown.gap)


def test_a_judged_response_has_its_verdict_as_score_and_a_demonstration_is_chosen(plain_tokenizer):
    for good, score in ((True, 1.0), (False, 0.0)):
        (response,) = render(plain_tokenizer, Judged("Is it?", " Yes.", good, WHERE, weight=3.0)).responses
        assert (response.role, response.score) == (Role.LABELLED, score)
    example = render(plain_tokenizer, Demonstration("Is it?", " Yes.", WHERE, weight=0.5))
    assert ([r.role for r in example.responses], example.weight) == ([Role.CHOSEN], 0.5)


# Plain text


def test_plain_text_is_taken_as_it_is_even_if_there_is_a_chat_template(plain_tokenizer):
    plain_tokenizer.chat_template = CHATML
    example = render(plain_tokenizer, pair())
    assert plain_tokenizer.decode(example.prompt) == "What is the capital?"
    assert [plain_tokenizer.decode(r.ids) for r in example.responses] == [" Paris is.</s>", " No idea.</s>"]


def test_text_as_chat_reads_plain_text_as_two_turns(plain_tokenizer):
    plain_tokenizer.chat_template = CHATML
    example = render(plain_tokenizer, pair(), text_as_chat=True)
    assert (
        plain_tokenizer.decode(example.prompt)
        == "<|im_start|>user\nWhat is the capital?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "record",
    [
        pair(prompt=(Message("user", "What is the capital?"),)),
        pair(chosen=(Message("assistant", " Paris is."),), rejected=(Message("assistant", " No idea."),)),
    ],
    ids=["response is text", "prompt is text"],
)
def test_text_beside_a_conversation_is_one_turn(plain_tokenizer, record):
    plain_tokenizer.chat_template = CHATML
    both = pair(
        (Message("user", "What is the capital?"),), (Message("assistant", " Paris is."),), (Message("assistant", "No"),)
    )
    expected, example = render(plain_tokenizer, both), render(plain_tokenizer, record)
    assert example.prompt.tolist() == expected.prompt.tolist()
    assert example.responses[0].ids.tolist() == expected.responses[0].ids.tolist()


def test_promise_02_bos_of_plain_text_is_what_the_tokenizer_adds_once(tokenizer_of):
    tokenizer = tokenizer_of("llama2", "sentencepiece_first")
    for prompt in ("What is it?", "<s>What is it?"):
        example = render(tokenizer, pair(prompt))
        assert example.prompt.tolist().count(tokenizer.bos_token_id) == 1
        assert example.prompt[0] == tokenizer.bos_token_id


def test_promise_02_control_tokens_typed_in_text_leave_the_record_out(tokenizer_of):
    tokenizer = tokenizer_of("llama2", "sentencepiece_first")
    reason = "the text of {} holds the control token <s>"
    bad = {
        "the prompt": [pair("What<s> is it?"), pair("<s><s>What is it?")],
        "chosen": [pair(chosen="<s> Paris")],
        "rejected": [pair(rejected=" No <s>")],
    }
    for name, records in bad.items():
        for record in records:
            assert render(tokenizer, record) == Dropped(WHERE, reason.format(name))
            assert render(tokenizer, record, text_as_chat=True) == Dropped(WHERE, reason.format(name))
    assert render(tokenizer, pair("What is it?</s>")) == Dropped(
        WHERE, "the text of the prompt holds the end token </s>"
    )
    assert isinstance(render(tokenizer, pair("Is <S> or < s> meant?", " <sic>")), Example)


def test_promise_02_only_what_the_record_says_is_looked_at_and_not_what_the_template_writes(tokenizer_of):
    tokenizer = tokenizer_of("qwen3", "byte_level")
    mark = "<|im_start|>"
    turns = {
        "the prompt": ((Message("user", f"{mark}system"),), (Message("assistant", "Yes."),)),
        "response": (
            (Message("user", "Hi"),),
            (Message("assistant", "Yes."), Message("user", f"And {mark}?"), Message("assistant", "No.")),
        ),
    }
    for name, (prompt, response) in turns.items():
        dropped = render(tokenizer, Demonstration(prompt, response, WHERE))
        assert dropped == Dropped(WHERE, f"the text of {name} holds the control token {mark}")
    thinking = (Message("assistant", "<think>\nLet me think.\n</think>\n\nYes."),)
    example = render(tokenizer, Demonstration((Message("user", "Hi"),), thinking, WHERE))
    assert example.prompt.tolist().count(tokenizer.convert_tokens_to_ids(mark)) == 2
    assert tokenizer.convert_tokens_to_ids("<think>") in example.responses[0].ids


def test_a_word_or_mark_that_serves_as_padding_is_still_text(plain_tokenizer):
    plain_tokenizer.add_special_tokens({"pad_token": "!", "bos_token": "<|pad|>"})
    assert isinstance(render(plain_tokenizer, pair("What is it!", " Paris!")), Example)
    assert render(plain_tokenizer, pair(chosen=" a<|pad|>")) == Dropped(
        WHERE, "the text of chosen holds the control token <|pad|>"
    )


def test_reasons_are_counted_for_each_control_token(tokenizer_of):
    tokenizer = tokenizer_of("llama3", "byte_level")
    typed = ["<|begin_of_text|>", "<|start_header_id|>", "<|begin_of_text|>"]
    records = [pair(f"It {mark}", where=Where("pairs.jsonl", row)) for row, mark in enumerate(typed)]
    with pytest.raises(PreftuneError) as error:
        render_all(records, tokenizer)
    reason = "the text of the prompt holds the control token"
    assert f"2 because {reason} <|begin_of_text|> (pairs.jsonl row 0, pairs.jsonl row 2)" in str(error.value)
    assert f"1 because {reason} <|start_header_id|> (pairs.jsonl row 1)" in str(error.value)


def test_promise_02_an_end_token_that_the_text_has_already_is_not_written_again(plain_tokenizer):
    example = render(plain_tokenizer, Demonstration("Is it?", " Yes.</s>", WHERE))
    assert example.responses[0].ids.tolist() == [*ids(plain_tokenizer, " Yes."), plain_tokenizer.eos_token_id]


def test_an_end_token_added_to_every_text_by_the_tokenizer_is_not_in_the_prompt(plain_tokenizer):
    end = ("</s>", plain_tokenizer.eos_token_id)
    plain_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[end])
    assert plain_tokenizer("Is it?")["input_ids"][-1] == plain_tokenizer.eos_token_id
    example = render(plain_tokenizer, Demonstration("Is it?", " Yes.", WHERE))
    assert example.prompt.tolist() == ids(plain_tokenizer, "Is it?")
    assert example.responses[0].ids.tolist().count(plain_tokenizer.eos_token_id) == 1


def test_an_empty_prompt_begins_with_bos_or_is_left_out(plain_tokenizer, tokenizer_of):
    record = Demonstration("", "The cat sat.", WHERE)
    assert render(plain_tokenizer, record) == Dropped(
        WHERE, "the prompt is empty, and the tokenizer has no bos_token to begin with"
    )
    tokenizer = tokenizer_of("llama3", "byte_level")
    assert render(tokenizer, record).prompt.tolist() == [tokenizer.bos_token_id]


def test_a_conversation_without_a_chat_template_is_written_plainly(tokenizer_of):
    tokenizer = copy.deepcopy(tokenizer_of("llama2", "sentencepiece_first"))
    tokenizer.chat_template = None
    renderer = Renderer(tokenizer)
    turns = (Message("user", "Hello there!"), Message("assistant", "Hi."), Message("user", "What is it?"))
    example = renderer.example(Demonstration(turns, (Message("assistant", "The cat."),), WHERE))
    text = "<s> User: Hello there!\n\nAssistant: Hi.</s> \n\nUser: What is it?\n\nAssistant: The cat.</s>"
    together = tokenizer.decode([*example.prompt, *example.responses[0].ids])
    assert together.replace(" ", "") == text.replace(" ", "")
    assert example.prompt.tolist().count(tokenizer.bos_token_id) == 1
    assert "no chat template" in renderer.notes[0]


# Tokens that straddle prompt and response


def test_promise_01_rows_whose_prompt_and_response_are_joined_are_named(plain_tokenizer):
    good = [pair(where=Where("pairs.jsonl", row)) for row in range(3)]
    bad = [pair("Answer: ", "The cat.", "Yes.", Where("pairs.jsonl", row)) for row in (3, 4)]
    with pytest.raises(PreftuneError) as error:
        render_all([*good, *bad], plain_tokenizer)
    message = str(error.value)
    assert "2 of 5 records" in message
    assert "pairs.jsonl row 3, pairs.jsonl row 4" in message
    assert "joins ' ' at the end of the prompt and the start of chosen into ' The'" in message
    many = [pair("Answer: ", "The cat.", "Yes.", Where("pairs.jsonl", row)) for row in range(40)]
    with pytest.raises(PreftuneError, match=r"row 9 and 30 more\)"):
        render_all(many, plain_tokenizer)


def test_promise_01_a_template_that_joins_the_boundary_is_named_by_row(plain_tokenizer):
    plain_tokenizer.chat_template = (
        "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}{{ eos_token if turn.role == 'assistant' }}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    record = Demonstration((Message("user", "Is it?"),), (Message("assistant", "The cat."),), WHERE)
    with pytest.raises(PreftuneError, match=r"pairs\.jsonl row 7: the tokenizer joins ' '.*into ' The'"):
        render(plain_tokenizer, record)


def test_boundary_shift_moves_the_boundary_back_and_keeps_identity(plain_tokenizer):
    record = pair("Answer: ", "The cat.", "42.")
    example = render(plain_tokenizer, record, boundary="shift")
    assert plain_tokenizer.decode(example.prompt) == "Answer:"
    for response, text in zip(example.responses, (record.chosen, record.rejected), strict=True):
        expected = [*ids(plain_tokenizer, record.prompt + text), plain_tokenizer.eos_token_id]
        assert [*example.prompt, *response.ids] == expected


# Truncation


LONG = pair("The answer is 42. " * 5 + "What is it?", " Paris is the capital." * 3, " No.")


def test_promise_04_long_records_are_dropped_by_default(plain_tokenizer):
    whole = render(plain_tokenizer, LONG)
    limit = len(whole.prompt) + len(whole.responses[0].ids)
    assert isinstance(render(plain_tokenizer, LONG, max_length=limit), Example)
    dropped = render(plain_tokenizer, LONG, max_length=limit - 1)
    assert dropped == Dropped(WHERE, f"prompt and response are longer than max_length={limit - 1} tokens")
    assert isinstance(render(plain_tokenizer, LONG, max_length=None), Example)


def test_promise_04_only_the_head_of_a_prompt_is_cut(plain_tokenizer, tokenizer_of):
    for tokenizer in (plain_tokenizer, tokenizer_of("llama2", "sentencepiece_first")):
        whole = render(tokenizer, LONG)
        limit = len(whole.prompt) + len(whole.responses[0].ids) - 8
        cut = render(tokenizer, LONG, max_length=limit, truncate="prompt_head")
        assert len(cut.prompt) == len(whole.prompt) - 8
        kept = 0 if tokenizer.bos_token is None else 1
        assert cut.prompt[:kept].tolist() == whole.prompt[:kept].tolist()
        assert cut.prompt[kept:].tolist() == whole.prompt[8 + kept :].tolist()
        for ours, theirs in zip(cut.responses, whole.responses, strict=True):
            assert ours.ids.tolist() == theirs.ids.tolist()
        short = len(whole.responses[0].ids) + kept
        dropped = render(tokenizer, LONG, max_length=short, truncate="prompt_head")
        assert dropped == Dropped(WHERE, f"a response alone is longer than max_length={short} tokens")


def test_promise_04_a_cut_response_has_no_end_token(plain_tokenizer):
    whole = render(plain_tokenizer, LONG)
    limit = len(whole.prompt) + len(whole.responses[0].ids) - 1
    cut = render(plain_tokenizer, LONG, max_length=limit, truncate="response_end")
    assert cut.prompt.tolist() == whole.prompt.tolist()
    assert cut.responses[0].ids.tolist() == whole.responses[0].ids[:-1].tolist()
    assert plain_tokenizer.eos_token_id not in cut.responses[0].ids
    assert cut.responses[1].ids[-1] == plain_tokenizer.eos_token_id
    dropped = render(plain_tokenizer, LONG, max_length=len(whole.prompt), truncate="response_end")
    assert dropped == Dropped(WHERE, f"the prompt alone is longer than max_length={len(whole.prompt)} tokens")


def test_promise_03_pairs_that_are_identical_after_truncation_are_dropped_and_listed(plain_tokenizer):
    same_start = pair("What is it?", " The answer is 42. Yes.", " The answer is 42. No.")
    found = render_all([same_start, pair()], plain_tokenizer)
    assert (len(found.train), found.messages) == (2, [])
    whole = found.train[0]
    config = RenderingConfig(max_length=len(whole.prompt) + 3, truncate="response_end")
    found = render_all([same_start, pair()], plain_tokenizer, config)
    assert len(found.train) == 1
    said = f"training data: 1 left out: 1 because chosen and rejected are identical in tokens ({WHERE})"
    assert found.messages == [said]


def test_promise_03_no_response_is_left_without_targets(plain_tokenizer):
    plain_tokenizer.chat_template = CHATML
    plain_tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    response = (Message("assistant", "Yes."), Message("user", "The cat sat on the mat."), Message("assistant", "No."))
    record = Demonstration("Is it?", response, WHERE)
    whole = render(plain_tokenizer, record)
    first = ids(plain_tokenizer, "Yes.<|im_end|>")
    for room in range(1, len(whole.responses[0].ids)):
        cut = render(plain_tokenizer, record, max_length=len(whole.prompt) + room, truncate="response_end")
        (response,) = cut.responses
        assert response.length == whole.responses[0].targets[:room].sum() >= 1
        assert len(response.ids) == len(response.targets) == room
        assert response.ids.tolist()[: len(first)] == first[:room]


# Records that say nothing, or twice


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (pair(chosen=""), "chosen is empty"),
        (pair(rejected=" \n"), "rejected is empty"),
        (pair(chosen=" a", rejected=" a"), "chosen and rejected are identical in tokens"),
        (pair(chosen=" a</s> b"), "the text of chosen holds the end token </s>"),
        (pair(chosen=" a</s></s>"), "the text of chosen holds the end token </s>"),
        (pair(rejected=" \ud83d"), "its text is broken Unicode (a surrogate without its pair)"),
        (Judged("Is it?", (Message("assistant", " "),), True, WHERE), "response is empty"),
        (
            Demonstration("Is it?", (Message("assistant", "Yes.</s>"),), WHERE),
            "the text of response holds the end token </s>",
        ),
    ],
)
def test_promise_03_records_that_cannot_teach_are_dropped_with_the_reason(plain_tokenizer, record, reason):
    plain_tokenizer.chat_template = CHATML
    assert render(plain_tokenizer, record) == Dropped(WHERE, reason)


def test_a_response_whose_letters_are_no_tokens_is_empty(tokenizer_of):
    tokenizer = tokenizer_of("alpaca", "byte_level")
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>")
    tokenizer.backend_tokenizer.normalizer = Replace("\u200b", "")
    assert render(tokenizer, pair(chosen="\u200b")) == Dropped(WHERE, "chosen is empty in tokens")


def test_if_every_record_is_dropped_the_reasons_are_counted(plain_tokenizer):
    records = [pair(where=Where("pairs.jsonl", row)) for row in range(3)]
    records.append(pair(chosen="", where=Where("pairs.jsonl", 3)))
    with pytest.raises(PreftuneError) as error:
        render_all(records, plain_tokenizer, RenderingConfig(max_length=4))
    assert "4 left out: 3 because prompt and response are longer than max_length=4 tokens" in str(error.value)
    assert "1 because chosen is empty (pairs.jsonl row 3)" in str(error.value)


def test_chunks_keep_the_order(plain_tokenizer, monkeypatch):
    monkeypatch.setattr("preftune.data.tokenising.CHUNK", 2)
    found = render_all(
        [pair(chosen=f" Answer {row}", where=Where("pairs.jsonl", row)) for row in range(5)], plain_tokenizer
    )
    assert [example.row for example in found.train] == [0, 1, 2, 3, 4]
    assert found.messages == []


# Tokenizers, templates and options


def test_a_tokenizer_without_an_end_token_is_an_error(plain_tokenizer):
    plain_tokenizer.eos_token = None
    for record in (pair(), pair(prompt=(Message("user", "Hi"),))):
        with pytest.raises(PreftuneError, match=r"set tokenizer\.eos_token"):
            render(plain_tokenizer, record)


def test_end_ids_are_where_generation_stops(tokenizer_of):
    tokenizer = tokenizer_of("llama3", "byte_level")
    stops = {tokenizer.convert_ids_to_tokens(index) for index in Renderer(tokenizer).end_ids}
    assert stops == {"<|eot_id|>", "<|end_of_text|>"}


def test_a_chat_template_is_given_as_text_or_as_a_file(plain_tokenizer, tmp_path):
    path = tmp_path / "chatml.jinja"
    path.write_text(CHATML, encoding="utf-8")
    record = pair(prompt=(Message("user", "Hi"),))
    by_text, by_file = (render(plain_tokenizer, record, chat_template=given) for given in (CHATML, str(path)))
    assert by_text.prompt.tolist() == by_file.prompt.tolist()
    assert plain_tokenizer.decode(by_file.prompt) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"chat_template": "missing.jinja"}, "neither Jinja text nor a file"),
        ({"chat_template": "{% for turn in"}, "give another chat_template"),
        ({"chat_template": "{{ messages[0].content }}{{ 'A' if messages | length > 1 }}"}, "renders a prompt diff"),
        ({"chat_template": CHATML, "template_options": {"enable_thinkin": False}}, "reads no such variable"),
        ({"template_options": {"enable_thinking": False}}, "has no chat template"),
    ],
)
def test_a_template_that_does_not_work_is_an_error_at_once(plain_tokenizer, config, message):
    with pytest.raises(PreftuneError, match=message):
        Renderer(plain_tokenizer, RenderingConfig(**config))


def test_a_tokenizer_with_several_templates_uses_its_default(plain_tokenizer):
    plain_tokenizer.chat_template = {"default": CHATML, "tool_use": "{{ 1 }}"}
    example = render(plain_tokenizer, pair(prompt=(Message("user", "Hi"),)))
    assert plain_tokenizer.decode(example.prompt).startswith("<|im_start|>user")
    plain_tokenizer.chat_template = {"rag": CHATML, "tool_use": "{{ 1 }}"}
    with pytest.raises(PreftuneError, match="no default chat template"):
        Renderer(plain_tokenizer)


def test_the_double_bos_of_a_template_is_refused(tokenizer_of):
    tokenizer = tokenizer_of("llama3", "byte_level")
    with pytest.raises(PreftuneError, match=r"row 7: the prompt begins with '<\|begin_of_text\|>' twice"):
        render(
            tokenizer, pair(prompt=(Message("user", "Hi"),)), chat_template="{{ bos_token }}" + tokenizer.chat_template
        )


def test_the_config_is_strict_and_survives_a_round_trip():
    config = RenderingConfig(max_length=None, truncate="prompt_head", template_options={"enable_thinking": False})
    assert RenderingConfig(**json.loads(config.model_dump_json())) == config
    for wrong in ({"max_len": 3}, {"max_length": 1}, {"truncate": "head"}, {"boundary": "any"}):
        with pytest.raises(ValidationError):
            RenderingConfig(**wrong)
