"""The command `preftune prompts collect`: naive prompts -> pairs of rewrites of which one has shown to be better.

prompts -> rewrites by each rewriter -> those that may be compared -> answers of each generator -> verdicts -> pairs

All that is written is kept in the folder at once and replayed, so that the same command goes on after any kill.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from preftune.data import builders
from preftune.data.sources import Source
from preftune.errors import PreftuneError
from preftune.evaluation.budget import Budget
from preftune.evaluation.calls import recall
from preftune.evaluation.journal import Journal
from preftune.evaluation.judges import CALLS, EndpointUse, open_judge
from preftune.evaluation.judges.base import digest
from preftune.prompting.benchmarks import BUILT_IN, BenchmarkQuestion, open_benchmark
from preftune.prompting.candidates import NAIVE, REFUSED, Candidate, LeftOut, screened
from preftune.prompting.collected import Collected, Spent, write_collected
from preftune.prompting.comparing import Answers, ByChecker, ByJudge, Comparer
from preftune.prompting.generators import Generator, GeneratorSampling, Reply, is_remote, open_generator
from preftune.prompting.naive import NaivePrompt, read_prompts
from preftune.prompting.rewriter import Asked, Rewriter, open_rewriter

KEPT = "kept"
Progress = Callable[[str, int, int], object]  # what is done, how much of it, of how much


@dataclass(frozen=True, kw_only=True)
class CollectSettings:
    """How pairs are collected.

    Attributes:
        rewriters: who rewrites: names of generators, each maybe with its template (NAME,template.yaml); "naive" leaves
            the prompt as it is.
        generators: who answers; several of them vote.
        judge: who says which answer is better; or
        checker: who says which answers are right.
        rubric: of a judge behind an endpoint.
        rewriting: how rewrites are written.
        answering: how answers are written.
        words: most words of a rewrite; None: twice those of the prompt, and at least 40 more.
        marks: texts that no rewrite may change, beside numbers, quotations, code, options and links.
        facts: leave out rewrites that change any of these.
        show_response: show rewriters what the first generator answered to the naive prompt.
        show_truth: show them the right answer; rewrites that tell it are left out.
        pairs: most pairs of a prompt: compared by a judge, or kept of those that a checker tells apart.
        seed: of all that is drawn here.
        max_calls: most requests to all endpoints together, ever.
        max_tokens: most tokens that these take, ever; None: any number.
        concurrency: requests under way to each endpoint.
        timeout: seconds that an answer may take.
        key_variable: environment variable that holds the API key.
    """

    rewriters: tuple[str, ...]
    generators: tuple[str, ...]
    judge: str | None = None
    checker: str | None = None
    rubric: Path | None = None
    rewriting: GeneratorSampling = field(default_factory=lambda: GeneratorSampling(temperature=1.0))
    answering: GeneratorSampling = field(default_factory=GeneratorSampling)
    words: int | None = None
    marks: tuple[str, ...] = ()
    facts: bool = True
    show_response: bool = False
    show_truth: bool = False
    pairs: int = 4
    seed: int = 0
    max_calls: int | None = 10_000
    max_tokens: int | None = None
    concurrency: int = 8
    timeout: float = 120.0
    key_variable: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        if (self.judge is None) == (self.checker is None):
            what = "neither is named" if self.judge is None else "both are named"
            raise PreftuneError(f"a judge or a checker says which rewrite is better, and {what}: name one of them")
        if not self.generators:
            raise PreftuneError("no generator is named, expected one or more that answer the prompts")
        for kind, names in (("rewriter", self.rewriters), ("generator", self.generators)):
            twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
            if twice is not None:
                raise PreftuneError(f"{kind} {twice} is named twice: for more rewrites of one, ask for more samples")
        if len(self.rewriters) * self.rewriting.samples < 2 or self.rewriters == (NAIVE,):
            raise PreftuneError(
                "one rewrite of a prompt cannot be compared: name two rewriters (naive is the prompt as it is), or "
                "ask for more samples"
            )
        if self.rewriting.samples > 1 and self.rewriting.temperature == 0:
            raise PreftuneError("several rewrites at temperature 0 are all the same: ask for one, or a temperature")
        if self.pairs < 1:
            raise PreftuneError(f"pairs of a prompt are {self.pairs}, expected at least 1")


def collect(
    source: Source,
    out: Path,
    settings: CollectSettings,
    *,
    limit: int | None = None,
    progress: Progress = lambda *_: None,
) -> Collected:
    """Collect pairs, and write them with what was left out: pairs.jsonl, dropped.jsonl and collect.json.

    Args:
        source: naive prompts, as `read_prompts` takes them; or a benchmark, as `open_benchmark` takes it: bbh=FOLDER.
        out: folder; what was written there before, by the same names, is replayed and paid no second time.
        settings: how.
        limit: use the first prompts only.
        progress: told what is done, and how much of it.

    Raises:
        PreftuneError: for anything a user can mend, before anything is sent where that can be known; and if a budget is
            used up, with what was answered kept.
    """
    budget = Budget(settings.max_calls, settings.max_tokens)
    prompts, questions = _read(source, limit, settings.seed)
    started = time.monotonic()
    with _Crew(settings, out / KEPT, budget, questions) as crew:
        crew.comparer.ready(prompts)
        shown = _naive_responses(prompts, crew, settings, progress) if settings.show_response else {}
        spent: dict[str, Spent] = {}
        candidates, left_out = _rewrites(prompts, crew, settings, shown, spent, progress)
        answers, candidates, refused = _answers(prompts, candidates, crew, settings, spent, progress)
        able = {source: some for source, some in candidates.items() if len(some) > 1}
        compared = crew.comparer.compare(able, answers, _told(progress, "comparisons"))
        found = Collected(
            prompts=prompts,
            candidates=candidates,
            left_out=[*left_out, *refused],
            compared=compared,
            answers=answers,
            shares=crew.comparer.shares if isinstance(crew.comparer, ByChecker) else {},
            spent=spent,
            calls=budget.calls,
            tokens=budget.tokens,
            seconds=time.monotonic() - started,
        )
    write_collected(out, found, settings)
    return found


def _read(source: Source, limit: int | None, seed: int) -> tuple[list[NaivePrompt], list[BenchmarkQuestion]]:
    """Naive prompts, and the questions that they are if they are a benchmark's."""
    if (
        not isinstance(source, str)
        or Path(source).exists()
        or source.partition("=")[0].partition(":")[0] not in BUILT_IN
    ):
        return read_prompts(source, limit), []
    questions = open_benchmark(source, limit=limit, seed=seed).questions
    prompts = [
        NaivePrompt(
            id=each.id,
            prompt=each.prompt,
            where=each.where,
            ground_truth=each.gold,
            task=each.task,
            options=each.options,
        )
        for each in questions
    ]
    return prompts, questions


class _Crew:
    """Rewriters, generators and who compares. All that is on endpoints is opened at once, so that the budget knows what
    they spent before and a wrong name costs nothing; models here are loaded when it is their turn."""

    def __init__(
        self, settings: CollectSettings, folder: Path, budget: Budget, questions: Sequence[BenchmarkQuestion]
    ) -> None:
        self._folder, self._stack, self._questions = folder, ExitStack(), questions
        self._opened: set[Path] = set()
        self._use = EndpointUse(
            max_calls=None,
            concurrency=settings.concurrency,
            timeout=settings.timeout,
            key_variable=settings.key_variable,
            budget=budget,
        )
        self._rewriters: dict[str, Rewriter] = {}
        self._generators: dict[str, Generator] = {}
        try:
            self._open(settings)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, settings: CollectSettings) -> None:
        for spec in settings.rewriters:
            if spec != NAIVE and is_remote(split_template(spec)[0]):
                self._rewriters[spec] = self._stack.enter_context(self._rewriter(spec))
        for name in settings.generators:
            if is_remote(name):
                self._generators[name] = self._stack.enter_context(self._generator(name))
        self.comparer = self._comparer(settings)
        self._stack.callback(self.comparer.close)
        _count_others(self._folder, self._opened, self._use.budget)

    def _comparer(self, settings: CollectSettings) -> Comparer:
        if settings.checker is not None:
            from preftune.prompting.checkers import open_checker

            return ByChecker(open_checker(settings.checker, self._questions), settings.pairs, settings.seed)
        name = str(settings.judge)
        if name in builders.names():
            raise PreftuneError(
                f"{name} checks answers exactly: name it as the checker (--checker {name}), not the judge"
            )
        folder = self._kept("judge", name, settings.rubric)
        return ByJudge(open_judge(name, folder, rubric=settings.rubric, use=self._use), settings.pairs, settings.seed)

    def _kept(self, kind: str, *parts: object) -> Path:
        """Where one keeps what it writes."""
        folder = self._folder / f"{kind}-{digest(*parts)}"
        self._opened.add(folder)
        return folder

    def _rewriter(self, spec: str) -> Rewriter:
        name, template = split_template(spec)
        return open_rewriter(name, self._kept("rewriter", spec), template=template, use=self._use)

    def _generator(self, name: str) -> Generator:
        return open_generator(name, self._kept("generator", name), use=self._use)

    @contextmanager
    def rewriter(self, spec: str) -> Iterator[Rewriter]:
        """A rewriter, loaded for as long as it is at work."""
        if spec in self._rewriters:
            yield self._rewriters[spec]
        else:
            with self._rewriter(spec) as found:
                yield found

    @contextmanager
    def generator(self, name: str) -> Iterator[Generator]:
        """Likewise a generator."""
        if name in self._generators:
            yield self._generators[name]
        else:
            with self._generator(name) as found:
                yield found


def _count_others(folder: Path, opened: set[Path], budget: Budget | None) -> None:
    """Count what was spent on endpoints that the command no longer names."""
    for path in sorted(folder.glob(f"*/{CALLS}")):
        if path.parent not in opened and budget is not None:
            journal = Journal(path)
            try:
                recall(journal, budget)
            finally:
                journal.close()


def split_template(spec: str) -> tuple[str, Path | None]:
    """Name and template of a rewriter.

    Example:
        >>> split_template("endpoint:http://127.0.0.1:8000/v1#m"), split_template("runs/a,short.yaml")[0]
        (('endpoint:http://127.0.0.1:8000/v1#m', None), 'runs/a')
    """
    name, comma, file = spec.rpartition(",")
    return (name, Path(file)) if comma and file.endswith((".yaml", ".yml")) else (spec, None)


def _naive_responses(
    prompts: Sequence[NaivePrompt], crew: _Crew, settings: CollectSettings, progress: Progress
) -> dict[str, str]:
    """What the first generator answers to the prompts as they are, by id."""
    name = settings.generators[0]
    texts = list(dict.fromkeys(prompt.prompt for prompt in prompts))
    with crew.generator(name) as generator:
        found = generator.write(texts, settings.answering, _told(progress, f"answers of {name}"))
    by_text = dict(zip(texts, found, strict=True))
    return {prompt.id: by_text[prompt.prompt][0].text for prompt in prompts}


def _rewrites(
    prompts: Sequence[NaivePrompt],
    crew: _Crew,
    settings: CollectSettings,
    shown: dict[str, str],
    spent: dict[str, Spent],
    progress: Progress,
) -> tuple[dict[str, list[Candidate]], list[LeftOut]]:
    """Rewrites that may be compared, by id of the prompt, and those that may not."""
    written: dict[str, list[tuple[str, Reply]]] = {prompt.id: [] for prompt in prompts}
    asked = [
        Asked(
            prompt.prompt,
            settings.words,
            response=shown.get(prompt.id) or None,
            ground_truth=prompt.ground_truth if settings.show_truth else None,
        )
        for prompt in prompts
    ]
    for spec in settings.rewriters:
        if spec == NAIVE:
            replies = [[Reply(prompt.prompt)] for prompt in prompts]
        else:
            with crew.rewriter(spec) as rewriter:
                replies = rewriter.replies(asked, settings.rewriting, _told(progress, f"rewrites of {spec}"))
            spent[f"rewriter {spec}"] = Spent.on(replies)
        for prompt, some in zip(prompts, replies, strict=True):
            written[prompt.id] += [(spec, reply) for reply in some]
    good: dict[str, list[Candidate]] = {}
    bad: list[LeftOut] = []
    for prompt in prompts:
        good[prompt.id], more = screened(
            prompt, written[prompt.id], words=settings.words, marks=settings.marks, facts=settings.facts
        )
        bad += more
    return good, bad


def _answers(
    prompts: Sequence[NaivePrompt],
    candidates: dict[str, list[Candidate]],
    crew: _Crew,
    settings: CollectSettings,
    spent: dict[str, Spent],
    progress: Progress,
) -> tuple[Answers, dict[str, list[Candidate]], list[LeftOut]]:
    """What each generator answers to rewrites, and to the naive prompts that have two or more; and the rewrites that no
    generator refused, and those that one did."""
    texts = list(
        dict.fromkeys(
            text
            for prompt in prompts
            if len(candidates[prompt.id]) > 1
            for text in (prompt.prompt, *(each.text for each in candidates[prompt.id]))
        )
    )
    answers: dict[str, dict[str, list[str]]] = {}
    refusals: dict[str, str] = {}
    for name in settings.generators:
        with crew.generator(name) as generator:
            found = generator.write(texts, settings.answering, _told(progress, f"answers of {name}"))
        spent[f"generator {name}"] = Spent.on(found)
        answers[name] = {text: [reply.text for reply in some] for text, some in zip(texts, found, strict=True)}
        for text, some in zip(texts, found, strict=True):
            refused = next((reply.refused for reply in some if reply.refused), "")
            if refused:
                refusals.setdefault(text, f"{name}: {refused}")
    good = {id_: [each for each in some if each.text not in refusals] for id_, some in candidates.items()}
    bad = [
        LeftOut(each, REFUSED, refusals[each.text])
        for some in candidates.values()
        for each in some
        if each.text in refusals
    ]
    return answers, good, bad


def _told(progress: Progress, what: str) -> Callable[[int, int], object]:
    """Progress of one stage."""
    return lambda done, of: progress(what, done, of)
