"""A run or a model, evaluated: held-out pairs, and answers side by side with those of what it is compared with.

evaluated = preftune.evaluate("runs/first")
evaluated.figures["pairs"]["accuracy"], evaluated.figures["generation"]["kl"]["per_response"]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from preftune.api_keys import this_command
from preftune.errors import PreftuneError
from preftune.evaluation.answers import BATCH, Prompt, Sampling, Writer, policy_writer, prompts_of, reference_writer
from preftune.evaluation.best_of_n import BestOf, BestWriter
from preftune.evaluation.endpoint import Endpoint
from preftune.evaluation.endpoint_writer import Answering, endpoint_writer
from preftune.evaluation.generating import Generated, generate
from preftune.evaluation.judges import ScoringJudge
from preftune.evaluation.models import standing_for
from preftune.evaluation.opening import Opened, open_for_evaluation
from preftune.evaluation.pair_figures import pair_figures
from preftune.evaluation.scoring import score
from preftune.evaluation.win_rate import Progress
from preftune.evaluation.winning import Judging, winning
from preftune.files import write_whole
from preftune.report.html import write as write_report
from preftune.training.run_folder import to_json

FIGURES, GENERATIONS = "evaluation.json", "generations.jsonl"
DEFAULT_OUT = Path("evaluation")  # of a model, which has no folder of its own to write to
PROMPTS = 64
PROMPTS_ALONE = "rollouts"  # kind of data without responses


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation came to.

    Attributes:
        figures: what evaluation.json holds.
        folder: where it lies, and generations.jsonl beside it.
        opened: policy, reference and examples, for more questions.
        generated: the answers; None if none were asked for.
        notes: what to know, a line each.
    """

    figures: dict[str, Any]
    folder: Path
    opened: Opened
    generated: Generated | None
    notes: tuple[str, ...]


def evaluate(
    path: str | Path,
    *,
    against: str | Path | None = None,
    data: str | Path | None = None,
    out: str | Path | None = None,
    prompts: int = PROMPTS,
    samples_per_prompt: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int | None = None,
    batch_size: int = BATCH,
    source_field: str = "source",
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda", "mps"] | None = None,
    judging: Judging | None = None,
    answering: Answering | None = None,
    best_of: BestOf | None = None,
    quiet: bool = False,
    progress: Progress | None = None,
) -> Evaluated:
    """Evaluate a run or a model on held-out data, and write evaluation.json and generations.jsonl.

    Args:
        path: a run folder, or a model: folder, hub id or "sandbox".
        against: run or model to compare with; none: the run's reference, and for a model nothing.
        data: file, folder, hub id or "sandbox", all of which is evaluated on; none: what the run held out.
        out: folder to write to; none: the run folder, for a model "evaluation".
        prompts: how many different prompts are answered; 0: none.
        samples_per_prompt: answers to each.
        temperature: of the answers; KL is measured at 1.
        max_new_tokens: at which an answer is cut; none: what the run sampled with.
        batch_size: answers written at a time.
        source_field: field of the data's rows that says where a row comes from, for figures by source.
        seed: of the answers.
        device: where to compute; none: "cpu" if the run was told so, else "auto".
        judging: who compares the answers; none: nobody. What was measured before stays, should a judge fail.
        answering: endpoints that answer the prompts in place of the models at hand; none: those models do. What was
            answered before stays, and is not asked again.
        best_of: of how many answers of each side the best is kept, and by which judge; none: answers as they come.
        quiet: no progress bar.
        progress: told how many of how many comparisons are judged.

    Raises:
        PreftuneError: for anything that a user can mend: see `open_for_evaluation`.
    """
    _check(prompts, samples_per_prompt, temperature, max_new_tokens, batch_size, seed)
    if judging is not None and not prompts:
        raise PreftuneError("a judge needs answers to compare, but prompts is 0: set it to 1 or more")
    if best_of is not None and not prompts:
        raise PreftuneError("best-of-n needs prompts to answer, but prompts is 0: set it to 1 or more")
    if answering is not None and not prompts:
        raise PreftuneError("an endpoint needs prompts to answer, but prompts is 0: set it to 1 or more")
    folder = _folder(path, out)
    with ExitStack() as stack:
        judge = None if judging is None else stack.enter_context(judging.opened(folder))  # a wrong name stops here
        ends = stack.enter_context((answering or Answering()).opened(folder))
        chooser = None if best_of is None else stack.enter_context(best_of.opened())
        opened = open_for_evaluation(path, data=data, against=against, device=device)
        figures = _head(opened, own_reference=against is None and best_of is None, own_data=data is None)
        if opened.kind != PROMPTS_ALONE:
            figures |= pair_figures(score(opened, show=not quiet), opened.examples, _sources(opened, source_field))
        elif not prompts:
            raise PreftuneError(f"{opened.data} has prompts alone, so answers are all there is to measure: set prompts")
        generated = None
        if prompts and (answering is not None or best_of is not None or not opened.is_reward_model):
            wanted = max_new_tokens or opened.config.evaluate.max_new_tokens
            sampling = Sampling(samples_per_prompt, temperature, wanted, seed, batch_size)
            sides = _Sides(opened, *ends, best_of, chooser)
            generated = sides.generated(prompts_of(opened, prompts), sampling)
            figures["generation"] = generated.figures
        write_evaluation(folder, figures, generated)
        if judging is not None and judge is not None:
            if generated is None:
                raise PreftuneError(f"{path} is a reward model, which writes no answers to judge: leave the judge out")
            figures["win_rate"] = winning(opened, generated, judge, judging, seed, progress).as_json()
            write_evaluation(folder, figures, generated)
    if opened.run is not None and folder.resolve() == opened.run.resolve() and (folder / "report.html").exists():
        write_report(folder)
    notes = [*opened.messages, *(generated.notes if generated else ())]
    if best_of is not None and judging is not None and judging.judge == best_of.by:
        notes.append(f"{best_of.by} both chose the answers and judged them: by another judge, they will look less good")
    return Evaluated(figures, folder, opened, generated, tuple(notes))


@dataclass
class _Sides:
    """Who answers on either side: the models at hand, or endpoints, as they come or the best of several."""

    opened: Opened
    policy: Endpoint | None
    against: Endpoint | None
    best_of: BestOf | None
    chooser: ScoringJudge | None

    def generated(self, prompts: Sequence[Prompt], sampling: Sampling) -> Generated:
        """Answers of both sides; the figures of a side say if an endpoint answered, and from what was chosen.

        Raises:
            PreftuneError: for a reward model, a best-of-n of nobody, and as `generate`.
        """
        if self.opened.is_reward_model:
            which = "the endpoint" if self.best_of is None else "--best-of"
            raise PreftuneError(f"{self.opened.name} is a reward model, which writes no answers: leave {which} out")
        chosen: dict[str, BestWriter] = {}
        writers = {name: writer for name in ("policy", "against") if (writer := self._writer(name, chosen)) is not None}
        found = generate(self.opened, prompts, sampling, **writers)
        for name, end in (("policy", self.policy), ("against", self.against)):
            if end is not None:
                found.figures[name]["model"] = end.name
            if name in chosen:
                found.figures[name]["best_of"] = chosen[name].figures
        return found

    def _writer(self, name: str, chosen: dict[str, BestWriter]) -> Callable[[Sampling], Writer] | None:
        """Who writes on a side; None: `generate` knows. What is chosen by a judge is put into `chosen` later on."""
        end: Endpoint | None = getattr(self, name)
        plain: Callable[[Sampling], Writer] | None = None if end is None else partial(endpoint_writer, end)
        n = 1 if self.best_of is None else int(getattr(self.best_of, name))
        if n == 1 or self.chooser is None:
            return plain
        if plain is None and name == "against" and self.opened.reference is None:
            raise PreftuneError(
                f"{self.opened.name} is compared with nothing, which has no --against-best-of: name a model (--against)"
            )
        own = policy_writer if name == "policy" else reference_writer
        write, judge = plain or partial(own, self.opened), self.chooser
        rows = {example.row: row for example, row in zip(self.opened.examples, self.opened.rows(), strict=True)}

        def best(sampling: Sampling) -> Writer:
            chosen[name] = BestWriter(write, sampling, n, judge, rows)
            return chosen[name]

        return best


def write_evaluation(folder: Path, figures: Mapping[str, Any], generated: Generated | None) -> None:
    """Write an evaluation into a folder, which is made if it is not there. Each file is whole or as it was.

    Raises:
        PreftuneError: if the disk does not take it.
    """
    files = {} if generated is None else {GENERATIONS: "".join(to_json(line) + "\n" for line in generated.lines())}
    files[FIGURES] = to_json(dict(figures), indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_whole(folder / name, text.encode())
    except OSError as error:
        raise PreftuneError(
            f"cannot write into {folder} ({error.strerror or error}): make room there, or name another folder (--out)"
        ) from error


def _folder(path: str | Path, out: str | Path | None) -> Path:
    """Where to write, if that can be a folder at all."""
    if out is None:
        folder = standing_for(path)
        return folder if (folder / "config.yaml").is_file() else DEFAULT_OUT
    if Path(out).exists() and not Path(out).is_dir():
        raise PreftuneError(f"--out {out} is a file, expected a folder to write {FIGURES} and {GENERATIONS} into")
    return Path(out)


def _head(opened: Opened, own_reference: bool, own_data: bool) -> dict[str, Any]:
    """What was evaluated, when and by which command; if against the run's own reference, and on what it held out."""
    prompts = {example.prompt.tobytes() for example in opened.examples}
    head: dict[str, Any] = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": this_command(),
        "model": opened.name,
        "own_reference": own_reference and opened.run is not None,
        "own_data": own_data and opened.run is not None,
    }
    if opened.against is not None:
        head["against"] = opened.against
    if opened.term is not None:
        head["rewards"] = {"objective": opened.term.name, **({} if opened.beta is None else {"beta": opened.beta})}
    head["data"] = {"path": opened.data, "kind": opened.kind, "pairs": len(opened.examples), "prompts": len(prompts)}
    return head


def _sources(opened: Opened, name: str) -> Sequence[str | None]:
    """Where each example comes from: what a field of its row says, else its file, if there are several."""
    rows = opened.rows()
    if any(isinstance(row.get(name), str | int) for row in rows):
        return [str(value) if isinstance(value := row.get(name), str | int) else None for row in rows]
    return [record.where.source for record in opened.records()]


def _check(
    prompts: int, samples: int, temperature: float, max_new_tokens: int | None, batch_size: int, seed: int
) -> None:
    for name, value, fits, expected in (
        ("prompts", prompts, prompts >= 0, "0 (no answers) or more"),
        ("samples_per_prompt", samples, samples >= 1, "at least 1"),
        ("temperature", temperature, 0 <= temperature < float("inf"), "0 (greedy) or more"),
        ("max_new_tokens", max_new_tokens, max_new_tokens is None or max_new_tokens >= 1, "at least 1"),
        ("batch_size", batch_size, batch_size >= 1, "at least 1"),
        ("seed", seed, seed >= 0, "a whole number of at least 0"),
    ):
        if not fits:
            raise PreftuneError(f"{name} is {value}, but it must be {expected}")
