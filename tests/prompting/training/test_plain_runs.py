"""An optimiser that is trained once: an ordinary run, whose rows were asked by its template."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from preftune import yaml_tree
from preftune.config import RunConfig
from preftune.data.records import Message, Where
from preftune.errors import PreftuneError
from preftune.prompting.config import PromptsConfig
from preftune.prompting.discriminators import Duel, open_discriminator
from preftune.prompting.generators import GeneratorSampling
from preftune.prompting.records import read_pairs, write_pairs
from preftune.prompting.rewriter import Asked, open_rewriter
from preftune.prompting.template import FILE, Template
from preftune.prompting.training import resume_prompts, train_prompts
from preftune.report.prompt_rounds import show

BARE = Template(optimizer="{prompt} In {words}:", discriminator="{prompt} {first} {second}", plain_end="\n")


def rows(run: Path, side: str) -> list[dict]:
    return [json.loads(line) for line in (run / "data" / f"{side}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("strategy", ["sft", "ipo"])
def test_a_run_is_an_ordinary_one_with_its_template(settings, world, strategy) -> None:
    trained = train_prompts(settings(objective={"name": strategy}), quiet=True)

    assert trained.path == trained.run.path
    assert trained.rounds == ()
    assert trained.run.summary["steps"] == 2
    assert Template.read(trained.path / FILE) == Template.read(world / "short.yaml")
    about = json.loads((trained.path / "prompts.json").read_text())
    assert about["strategy"] == strategy
    assert sum(about["rows"]["train"].values()) == 14
    assert sum(about["rows"]["held_out"].values()) == 4
    assert "prompts" not in yaml_tree.read(trained.path / "config.yaml"), "preftune train takes it again"
    assert yaml_tree.load(RunConfig, trained.path / "config.yaml", tagged=("objective",)).data.held_out_path

    with open_rewriter(str(trained.path)) as rewriter:
        assert rewriter.template.optimizer == "{prompt}{known} In {words}:"
        assert rewriter.generator.chat, "as in its training"
        assert rewriter.rewrite([Asked("Draw a dog.", 10)], GeneratorSampling(max_new_tokens=24))[0][0]


def test_no_source_prompt_lies_on_both_sides_whatever_was_made_of_it(settings) -> None:
    run = train_prompts(settings(prompts={"each": 8}), quiet=True).path
    sides = [{row["prompt"][0]["content"].partition(".")[0] for row in rows(run, s)} for s in ("train", "held_out")]
    assert len(rows(run, "held_out")) > 4, "several rows of each"
    assert not sides[0] & sides[1]


def test_the_prompt_alone_stands_in_plain_rows(settings, world) -> None:
    run = train_prompts(settings(prompts={"cases": False, "chat": False}), quiet=True).path
    first = next(iter(read_pairs(str(world / "pairs.jsonl"))))
    found = rows(run, "train") + rows(run, "held_out")
    assert {
        "prompt": f"{first.prompt} In 10:\n",
        "chosen": first.chosen,
        "rejected": first.rejected,
    } in [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in found]
    assert all("good" not in row["prompt"] and "bad" not in row["prompt"] for row in found)
    with open_rewriter(str(run)) as rewriter:
        assert not rewriter.generator.chat, "though its tokenizer has a chat template"


def test_a_chat_model_is_asked_in_a_turn(settings, world) -> None:
    run = train_prompts(settings(), quiet=True).path
    turns = [row["prompt"] for row in rows(run, "train")]
    assert all(len(one) == 1 and one[0]["role"] == "user" for one in turns)
    template = Template.read(world / "short.yaml")
    assert template.asked("x", chat=True) == (Message("user", "x"),)


def test_pairs_may_be_given_as_objects_and_the_run_goes_on_without_them(settings, world) -> None:
    pairs = list(read_pairs(str(world / "pairs.jsonl")))
    given = settings("given")
    del given["data"]["path"]
    run = train_prompts(given, pairs=pairs, quiet=True).run
    assert run.summary["steps"] == 2
    assert resume_prompts(run.path, quiet=True).run.summary == run.summary, "it had ended"


def test_held_out_pairs_may_have_a_file_of_their_own(settings, world, tmp_path) -> None:
    pairs = list(read_pairs(str(world / "pairs.jsonl")))
    write_pairs(tmp_path / "apart.jsonl", [pairs[0], replace(pairs[1], id="other", prompt="Sing of a ship.")])
    apart = {"held_out": 0.1, "held_out_path": str(tmp_path / "apart.jsonl")}
    run = train_prompts(settings(data=apart, prompts={"cases": False}), quiet=True).path
    (row,) = rows(run, "held_out")
    assert row["prompt"][0]["content"] == "Sing of a ship. In 10:"


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ({"data": {"path": "none.jsonl"}}, "none.jsonl"),
        ({"data": {"layout": "pairs"}}, "data.layout=pairs is not for pairs of rewrites"),
        ({"data": {"split": "test"}}, "data.split=test is not for pairs of rewrites"),
        ({"data": {"bad_rows": "drop"}}, "data.bad_rows=drop is not for pairs of rewrites"),
        ({"online": {"judge": "sandbox"}}, "leave online out"),
        ({"prompts": {"template": "none.yaml"}}, "none.yaml"),
        ({"prompts": {"rounds": -1}}, "prompts.rounds is the number -1, expected a number greater than or equal to 0"),
        ({"prompts": {"each": 9}}, "prompts.each is the number 9"),
        ({"prompts": {"round": 2}}, "did you mean"),
        ({"prompts": {"rounds": 2, "discriminator": "gsm9k"}}, "did you mean gsm8k"),
        ({"prompts": {"rounds": 2, "discriminator": "own:none"}}, "own has no function 'none'"),
        ({"prompts": {"rounds": 2, "discriminator": "task"}}, "prompts.generator and prompts.checker belong to"),
        ({"prompts": {"rounds": 2, "checker": "gsm8k"}}, "prompts.generator and prompts.checker belong to"),
        (
            {"prompts": {"rounds": 2, "discriminator": "task", "generator": "own:answers", "checker": "own:first"}},
            "prompts.checker=own:first compares answers",
        ),
        ({"prompts": {"rounds": 2, "rubric": "r.txt"}}, "prompts.rubric is for a judge behind an endpoint"),
        (
            {"prompts": {"rounds": 2, "discriminator": "endpoint:http://127.0.0.1:9"}},
            "127.0.0.1:9",
        ),
        ({"prompts": {"rounds": 2}, "model": {"path": "scratch:qwen3"}}, "rounds begin with a model on disk"),
        (
            {"prompts": {"rounds": 2}, "objective": {"name": "bradley_terry"}},
            "writes no rewrites: leave prompts.rounds out",
        ),
        (
            {"prompts": {"rounds": 2, "reference": "last_round"}, "reference": {"path": "sandbox"}},
            "each say what the reference is",
        ),
        ({"prompts": {"rounds": 2}, "output": {"overwrite": True}}, "output.overwrite=true is not for rounds"),
        ({"prompts": {"rounds": 2}, "model": {"revision": "abc"}}, "model.revision=abc does not go with rounds"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence_and_leaves_nothing(settings, tmp_path, blocks, said) -> None:
    with pytest.raises(PreftuneError) as refused:
        train_prompts(settings(**blocks), quiet=True)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "0 rows in"),
        ('{"prompt": "a", "chosen": "b"}\n', "rejected is missing"),
        ('{"prompt": "a", "chosen": "b", "rejected": 3}\n', "rejected"),
        ("optimizer: x\n", "JSON"),
    ],
)
def test_broken_pairs_are_named_by_row(settings, tmp_path, text, said) -> None:
    (tmp_path / "broken.jsonl").write_text(text)
    with pytest.raises(PreftuneError, match=said):
        train_prompts(settings(data={"path": str(tmp_path / "broken.jsonl")}), quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.jsonl"]


def test_pairs_without_a_preference_are_left_out_and_counted(settings, world, tmp_path) -> None:
    pairs = list(read_pairs(str(world / "pairs.jsonl")))
    same = replace(
        pairs[0], id="same", prompt="Sing.", chosen="Sing now.", rejected="Sing  now.", where=Where("pairs.jsonl", 18)
    )
    said: list[str] = []
    train_prompts(settings(data={"held_out": 0}), pairs=[*pairs, same], quiet=True, say=said.append)
    assert said == ["note: pairs: 1 left out: 1 because chosen and rejected are identical (pairs.jsonl row 18)"]
    with pytest.raises(PreftuneError, match="no pair is left to learn from"):
        train_prompts(settings("none", data={"held_out": 0}), pairs=[same], quiet=True)
    assert not (tmp_path / "none").exists()


def test_a_reward_model_of_rewrites_judges_them(settings, capsys) -> None:
    trained = train_prompts(settings(objective={"name": "bradley_terry"}), quiet=True)
    show(trained)
    assert f"a judge of rewrites: reward:{trained.path}" in capsys.readouterr().out.replace("\n", "")
    how = PromptsConfig(rounds=1, discriminator=f"reward:{trained.path}")
    with open_discriminator(how, None, Template()) as judge:
        duel = Duel("one", "Draw a dog.", "Draw a dog. Think first.", "Draw a dog. Now.", 20)
        assert judge.verdicts([duel.comparison(Template())])[0].preference in (0.0, 1.0)


def test_a_broken_template_is_named_by_block(settings, tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text('optimizer: "Better:"\n')
    with pytest.raises(PreftuneError, match=r"mine\.yaml: block optimizer lacks the slot \{prompt\}"):
        train_prompts(settings(prompts={"template": str(tmp_path / "mine.yaml")}), quiet=True)


def test_keys_without_an_effect_are_named(settings) -> None:
    said: list[str] = []
    prompts = {"cases": False, "each": 2, "temperature": 0.5, "top_p": 0.5}
    train_prompts(settings(prompts=prompts), quiet=True, say=said.append)
    assert said == [
        "note: prompts.each has no effect with prompts.cases=false",
        "note: prompts.temperature and prompts.top_p have no effect with prompts.rounds=0",
    ]


def test_a_folder_without_an_optimiser_does_not_go_on(tmp_path) -> None:
    with pytest.raises(PreftuneError, match=r"holds no optimiser, it has no prompts\.json"):
        resume_prompts(tmp_path)
