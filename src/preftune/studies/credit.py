"""Does credit find the step that is wrong? Preferences about whole answers, judged line by line.

A model learns to answer (SFT), then DPO learns from pairs of a right and a wrong answer; which line is wrong it is
never told. On answers it has not seen, each with one wrong line that is known, the line with the lowest credit is held
against the line with the lowest log-probability under the reference, and against chance.

Grounds: "steps", the built-in world of sums (`sandbox.steps`), where all answers are the reference's own; and "gsm8k",
worked answers with one line corrupted, chosen over it the answer as it was.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from preftune.api import train
from preftune.data.builders import gsm8k
from preftune.data.examples import Example, Response
from preftune.data.packing import pad
from preftune.data.pieces import pieces
from preftune.data.records import Demonstration, Preference, Where
from preftune.errors import PreftuneError
from preftune.evaluation.credit import TokenCredit, credits_of, steps
from preftune.evaluation.intervals import Z95, wilson
from preftune.evaluation.sampling import sample
from preftune.objectives.batch import Role
from preftune.policy.policy import PolicyModule, logps
from preftune.policy.scratch import ScratchConfig, build
from preftune.run import Run
from preftune.sandbox.steps import MAX_RESPONSE_TOKENS, MODULUS, StepsWorld, prompt, wrong_lines
from preftune.studies.threads import one_thread

# The policy's own log-prob is no rule to beat: it holds what credit holds, and what the reference knew before.
RULES = ("credit", "reference log-prob", "reference log-prob per token", "policy log-prob", "chance")
TO_BEAT = ("reference log-prob", "reference log-prob per token", "chance")
BETA = 0.1
AT_ONCE = 32  # answers scored in a forward

Array = NDArray[np.float64]
Kind = Literal["misread", "result"]  # of a corrupted line


@dataclass(frozen=True)
class Form:
    """How large a study is.

    Attributes:
        demonstrations: answers that SFT learns from.
        epochs: of SFT.
        pairs: that DPO learns from.
        judged: answers with one wrong line, at most.
        seeds: each with a world, a model and pairs of its own.
    """

    demonstrations: int
    epochs: float
    pairs: int
    judged: int
    seeds: tuple[int, ...]


FULL = {
    "steps": Form(16_000, 1, 4096, 1000, (0, 1, 2)),
    "gsm8k": Form(5_000, 2, 4_000, 450, (0,)),
}
QUICK = {"steps": Form(7_000, 1, 1024, 300, (0,)), "gsm8k": Form(400, 1, 100, 60, (0,))}


@dataclass(frozen=True)
class Judged:
    """An answer with one wrong line, which is known (counted from 0)."""

    prompt: str
    answer: str
    wrong: int


@dataclass(frozen=True)
class Rate:
    """How often a rule picks the wrong line: a share with its 95% interval, and how far credit is ahead of it."""

    rule: str
    hits: float
    ci95: tuple[float, float]
    behind: float
    behind_ci95: tuple[float, float]


@dataclass(frozen=True)
class Ground:
    """What came out on one ground.

    Attributes:
        name: "steps" or "gsm8k".
        form: its size.
        answers: judged, all seeds together.
        lines: mean number of lines of an answer.
        accuracy: of the implicit reward on held-out pairs, per seed.
        rates: one for each of `RULES`.
    """

    name: str
    form: Form
    answers: int
    lines: float
    accuracy: list[float]
    rates: list[Rate]

    @property
    def held(self) -> bool:
        """True if credit is ahead of chance and of the reference's log-probs by more than its interval."""
        return all(rate.behind_ci95[0] > 0 for rate in self.rates if rate.rule in TO_BEAT)


def study(
    out: Path, data: Path | None = None, kind: Kind = "misread", quick: bool = False, show: bool = False
) -> list[Ground]:
    """Run the study and write results.json.

    Args:
        out: folder of the study.
        data: folder with GSM8K's train.jsonl; without it only the built-in ground is run.
        kind: how a line of GSM8K is corrupted.
        quick: one seed and small sizes.
        show: progress bars.

    Raises:
        PreftuneError: if the data cannot be read, or the folder cannot be written to.
    """
    forms = QUICK if quick else FULL
    worked = None
    if data is not None:
        worked = [*gsm8k.demonstrations(data / "train.jsonl" if data.is_dir() else data)]
    found = [_ground("steps", forms["steps"], out, _steps, show)]
    if worked is not None:
        found.append(_ground(f"gsm8k, {kind}", forms["gsm8k"], out, partial(_gsm8k, worked, kind), show))
    text = json.dumps({"beta": BETA, "grounds": [asdict(ground) for ground in found]}, indent=1)
    try:
        (out / "results.json").write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise PreftuneError(f"cannot write {out / 'results.json'}: {error.strerror}") from error
    return found


def localise(run: Run, judged: Sequence[Judged], reference: PolicyModule) -> Array:
    """Whether each rule picks the wrong line of each answer: 1 or 0, shares where lines tie; shape (answers, rules).

    Args:
        run: whose policy gives the credit.
        judged: the answers.
        reference: what the policy is compared with.
    """
    policy = PolicyModule(run.model.eval(), "padded")  # type: ignore[union-attr]
    assert run.tokenizer is not None
    rows = []
    for start in range(0, len(judged), AT_ONCE):
        part = judged[start : start + AT_ONCE]
        for one, credit in zip(part, _credits(part, policy, reference, run.tokenizer), strict=True):
            rows.append(_picks(one, credit))
    return np.array(rows)


def corrupted(question: str, answer: str, kind: Kind, rng: random.Random) -> tuple[str, int] | None:
    """A worked answer with one number of one line replaced, and which line that is; None if there is no choice.

    Args:
        question: as text.
        answer: its lines; those with "=" are sums.
        kind: "misread": a number that the line takes from the question, before its last "="; "result": the number
            after it. All other lines stay, so that after a wrong result the next line may not fit.
        rng: draws line, number and what stands in its place, of as many digits.
    """
    lines = answer.split("\n")
    sums = [number for number, line in enumerate(lines) if "=" in line]
    given = set(_NUMBER.findall(question))
    places = [(number, found) for number in sums if (found := _places(lines[number], kind, given))]
    if len(sums) < 2 or not places:
        return None
    place, found = rng.choice(places)
    old = rng.choice(found)
    digits = len(old[1])
    others = [n for n in range(10 ** (digits - 1) if digits > 1 else 0, 10**digits) if str(n) != old[1]]
    lines[place] = f"{lines[place][: old.start(1)]}{rng.choice(others)}{lines[place][old.end(1) :]}"
    return "\n".join(lines), place


def _places(line: str, kind: Kind, given: set[str]) -> list[re.Match[str]]:
    """The numbers of a line that may be replaced."""
    last = line.rindex("=")
    if kind == "misread":
        return [found for found in _NUMBER.finditer(line[:last]) if found[1] in given]
    return [found for found in [_NUMBER.search(line, last)] if found is not None]


# up to four digits, no part of a longer number or of a decimal
_NUMBER = re.compile(r"(?<![\d.,])(\d{1,4})(?!\d|[.,]\d)")


Localised = tuple[Run, list[Judged], PolicyModule]  # what was trained, on what it is judged, and the reference
Make = Callable[[Form, int, Path, bool], Localised]


@one_thread()
def _ground(name: str, form: Form, out: Path, make: Make, show: bool) -> Ground:
    hits, lines, accuracy = [], [], []
    for seed in form.seeds:
        run, judged, reference = make(form, seed, out / f"{name.partition(',')[0]}-{seed}", show)
        hits.append(localise(run, judged, reference))
        lines += [one.answer.strip("\n").count("\n") + 1 for one in judged]
        accuracy.append(float(run.summary["after"]["preference_accuracy"]))
    table = np.concatenate(hits)
    rates = [_rate(rule, table[:, i], table[:, 0]) for i, rule in enumerate(RULES)]
    return Ground(name, form, len(table), float(np.mean(lines)), accuracy, rates)


def _steps(form: Form, seed: int, folder: Path, show: bool) -> Localised:
    """The built-in world: a model of its chains, and pairs of its own answers."""
    world, rng = StepsWorld.drawn(seed), random.Random(f"chains {seed}")
    shown = [
        Demonstration(*world.chain(rng), Where("chains", number))  # what a person would write, slips and all
        for number in range(form.demonstrations)
    ]
    sizes = ScratchConfig(
        vocab_size=320, hidden_size=64, layers=2, heads=4, context=128, overrides={"initializer_range": 0.05}
    )
    model, tokenizer = build("qwen3", (f"{one.prompt}{one.response}" for one in shown), sizes, seed)
    sft = _sft(model, tokenizer, shown, form, seed, folder, show, rate=3e-3, size=16)

    def answers(count: int, stream: int) -> list[tuple[str, str]]:
        drawn = random.Random(f"prompts {seed} {stream}")
        asked = [prompt(drawn.randrange(MODULUS)) for _ in range(count)]
        ends = [tokenizer.eos_token_id]
        written = sample(
            sft.model,  # type: ignore[arg-type]
            [tokenizer.encode(text) for text in asked],
            max_new_tokens=MAX_RESPONSE_TOKENS,
            seed=2 * seed + stream,
            end_ids=ends,
            pad_id=tokenizer.pad_token_id,
        )
        texts = tokenizer.batch_decode([one.ids for one in written], skip_special_tokens=True)
        return list(zip(asked, texts, strict=True))

    pairs: list[Preference] = []
    right: dict[str, list[str]] = {}
    wrong: dict[str, list[str]] = {}
    for asked, text in answers(5 * form.pairs, 0):
        found = wrong_lines(text)
        if found is not None:
            (wrong if found else right).setdefault(asked, []).append(text)
    for asked, good in right.items():
        bad = wrong.get(asked, [])
        pairs += [
            Preference(asked, *both, Where("chains", len(pairs) + i))
            for i, both in enumerate(zip(good, bad, strict=False))
        ]
    random.Random(f"order {seed}").shuffle(pairs)
    reference = PolicyModule(_copy(sft), "padded")
    run = _dpo(sft, pairs[: form.pairs], seed, folder, show, rate=1e-3, size=64)
    judged = [
        Judged(asked, text, found[0])
        for asked, text in answers(8 * form.judged, 1)
        if (found := wrong_lines(text)) is not None and len(found) == 1
    ]
    return run, judged[: form.judged], reference


def _gsm8k(worked: Sequence[Demonstration], kind: Kind, form: Form, seed: int, folder: Path, show: bool) -> Localised:
    """Worked answers: each over a copy of which one line is corrupted."""
    rng = random.Random(f"gsm8k {seed}")
    rows = rng.sample(worked, len(worked))
    sizes = ScratchConfig(vocab_size=2048, hidden_size=192, layers=3, heads=4, context=1024)
    shown = rows[: form.demonstrations]
    model, tokenizer = build("qwen3", (f"{one.prompt}{one.response}" for one in shown), sizes, seed)
    sft = _sft(model, tokenizer, shown, form, seed, folder, show, rate=2e-3, size=8)
    pairs: list[Preference] = []
    judged: list[Judged] = []
    for one in rows[form.demonstrations :] + shown:  # those that SFT has not seen come first, and are judged
        changed = corrupted(str(one.prompt), str(one.response), kind, rng)
        if changed is None:
            continue
        if len(judged) < form.judged:
            judged.append(Judged(str(one.prompt), changed[0], changed[1]))
        elif len(pairs) < form.pairs:
            pairs.append(Preference(one.prompt, one.response, changed[0], one.where))
    reference = PolicyModule(_copy(sft), "padded")
    return _dpo(sft, pairs, seed, folder, show, rate=3e-4, size=16), judged, reference


def _sft(
    model: Any, tokenizer: Any, rows: Any, form: Form, seed: int, folder: Path, show: bool, rate: float, size: int
) -> Run:
    return train(
        model,
        rows,
        "sft",
        tokenizer=tokenizer,
        output=folder / "sft",
        overwrite=True,
        quiet=not show,
        config={"data": {"held_out": 0.0}},
        optim={"learning_rate": rate},
        batch={"size": size},
        train={"epochs": form.epochs},
        evaluate={"samples": 0},
        seed=seed,
    )


def _dpo(sft: Run, pairs: list[Preference], seed: int, folder: Path, show: bool, rate: float, size: int) -> Run:
    return train(
        str(sft.path / "model"),
        pairs,
        {"name": "dpo", "beta": BETA},
        output=folder / "dpo",
        overwrite=True,
        quiet=not show,
        config={"data": {"held_out": 0.1}},
        optim={"learning_rate": rate},
        batch={"size": size},
        evaluate={"samples": 0},
        seed=seed,
    )


def _copy(run: Run) -> Any:
    return copy.deepcopy(run.model).eval()  # type: ignore[union-attr]


def _credits(
    part: Sequence[Judged], policy: PolicyModule, reference: PolicyModule, tokenizer: Any
) -> list[TokenCredit]:
    """The credit of each answer."""
    examples = []
    for one in part:
        asked = tokenizer.encode(one.prompt)
        ids = tokenizer.encode(one.prompt + one.answer)[len(asked) :]
        response = Response(np.array(ids, np.int32), Role.CHOSEN)
        examples.append(Example(np.array(asked, np.int32), (response,)))
    batch = pad(examples, tokenizer.pad_token_id)
    with torch.no_grad():
        ours, theirs = (logps(module, batch) for module in (policy, reference))
    return [credit for (credit,) in credits_of(examples, batch, ours, theirs, BETA, lambda ids: pieces(tokenizer, ids))]


def _picks(one: Judged, credit: TokenCredit) -> list[float]:
    """For each rule the share of the wrong line among those that it holds for the worst."""
    line_T = steps(credit.tokens, "line")
    tokens_L = np.bincount(line_T)
    reference_L = np.bincount(line_T, credit.reference_logps_T)
    scores = (
        np.bincount(line_T, credit.credit_T),
        reference_L,
        reference_L / tokens_L,
        np.bincount(line_T, credit.logps_T),
        np.zeros(len(tokens_L)),
    )
    return [float((row.argmin() == one.wrong) if row.any() else 1 / len(row)) for row in scores]


def _rate(rule: str, hits: Array, credit: Array) -> Rate:
    """A rule's share of hits, and credit's lead over it, paired by answer."""
    share, lead = float(hits.mean()), credit - hits
    half = float(Z95 * lead.std(ddof=1) / np.sqrt(len(lead)))
    middle = float(lead.mean())
    return Rate(rule, share, wilson(share, len(hits)), middle, (middle - half, middle + half))
