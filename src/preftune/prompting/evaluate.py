"""The command `preftune prompts evaluate`: naive prompts against optimised ones, by what generators answer to them.

benchmarks -> questions -> rewrites by each optimiser, or the naive prompt where a rewrite may not be used
           -> n-shot prompts -> answers of each generator -> exact scores -> the same questions, side by side

All that is written is kept in the folder at once and replayed, so that the same command goes on after any kill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from preftune.data.sources import rows
from preftune.errors import PreftuneError
from preftune.evaluation.budget import Budget
from preftune.evaluation.judges import EndpointUse
from preftune.evaluation.judges.base import digest
from preftune.prompting.benchmarks import Benchmark, open_benchmark
from preftune.prompting.benchmarks.base import NEXT
from preftune.prompting.collected import Spent
from preftune.prompting.counting import CountingGenerator
from preftune.prompting.evaluated import NAIVE, Answered, Asking, Evaluated, Wording
from preftune.prompting.facts import problem
from preftune.prompting.generators import Generator, GeneratorSampling, Reply, is_remote, open_generator
from preftune.prompting.naive import LONGEST
from preftune.prompting.naming import prompt_id
from preftune.prompting.optimize import FEWEST_TOKENS, OptimizeSettings, optimize
from preftune.prompting.rewriter import Asked, Rewriter, open_rewriter

KEPT = "kept"
ORIGINAL = "original prompt raw_prompt".split()  # columns of a file of prompts
OPTIMISED = "optimized optimised rewrite chosen gpt4_optimized_prompt".split()
Progress = Callable[[str, int, int], object]  # what is done, how much of it, of how much


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """What is compared, and how.

    Attributes:
        benchmarks: as `open_benchmark` takes them.
        generators: who answers, as `open_generator` takes them.
        optimizers: who rewrites, as `open_rewriter` takes them.
        prompts: a file with prompts and their rewrites, beside or instead of optimisers.
        limit: most questions of each benchmark.
        shots: examples before each question; None: as the paper.
        words: most words of a rewrite; None: twice those of the prompt, and at least 40 more.
        marks: texts that no rewrite may change, beside numbers, quotations, code, options and links.
        guard: put the naive prompt in the place of a rewrite that changes any of these.
        candidates: rewrites of a prompt, of which the first that may be used is.
        greedy: answer with the most probable tokens.
        sampled: answers drawn to each prompt besides; 0: none.
        temperature: of those.
        top_p: of those.
        answer_tokens: tokens at which an answer is cut.
        seed: of questions, examples, draws and intervals.
        max_calls: most requests to all endpoints together, ever.
        max_tokens: most tokens that these take, ever; None: any number.
        concurrency: requests under way to each endpoint.
        timeout: seconds that an answer may take.
        key_variable: environment variable that holds the API key.
    """

    benchmarks: tuple[str, ...]
    generators: tuple[str, ...]
    optimizers: tuple[str, ...] = ()
    prompts: Path | None = None
    limit: int | None = None
    shots: int | None = None
    words: int | None = None
    marks: tuple[str, ...] = ()
    guard: bool = True
    candidates: int = 4
    greedy: bool = True
    sampled: int = 0
    temperature: float = 0.8
    top_p: float = 0.95
    answer_tokens: int = 512
    seed: int = 0
    max_calls: int | None = 10_000
    max_tokens: int | None = None
    concurrency: int = 8
    timeout: float = 120.0
    key_variable: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        if not self.optimizers and self.prompts is None:
            raise PreftuneError("nothing is compared with the naive prompts: name an optimiser, or a file of rewrites")
        for kind, names in (
            ("benchmark", [_title(name) for name in self.benchmarks]),
            ("generator", self.generators),
            ("optimiser", [NAIVE, *self.wordings]),
        ):
            if not names:
                raise PreftuneError(f"no {kind} is named, expected at least one")
            if twice := [name for i, name in enumerate(names) if name in names[:i]]:
                raise PreftuneError(f"{kind} {twice[0]} is named twice: give each once, and by a name of its own")
        if not self.greedy and not self.sampled:
            raise PreftuneError("no answers are asked for: leave greedy ones, or ask for some that are sampled")
        if self.sampled and self.temperature <= 0:
            raise PreftuneError("answers sampled at temperature 0 are all the same: name a temperature above 0")
        _ = self.optimizing  # which checks what is given

    @property
    def optimizing(self) -> OptimizeSettings:
        """How prompts are optimised: as `preftune prompts optimize` does it."""
        return OptimizeSettings(candidates=self.candidates, seed=self.seed, words=self.words, marks=self.marks)

    @property
    def wordings(self) -> list[str]:
        """Names of what is compared with the naive prompts."""
        return [*self.optimizers, *([str(self.prompts)] if self.prompts is not None else [])]

    @property
    def decodings(self) -> dict[str, GeneratorSampling]:
        """How answers are written, by name."""
        found = {"greedy": GeneratorSampling(max_new_tokens=self.answer_tokens, seed=self.seed)} if self.greedy else {}
        if self.sampled:
            found["sampled"] = GeneratorSampling(
                max_new_tokens=self.answer_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                samples=self.sampled,
                seed=self.seed,
            )
        return found


def evaluate(out: Path, settings: EvaluateSettings, progress: Progress = lambda *_: None) -> Evaluated:
    """Compare naive and optimised prompts, and write evaluation.json, questions.jsonl and table.csv.

    Args:
        out: folder; what was written there before, by the same names, is replayed and paid no second time.
        settings: what, and how.
        progress: told what is done, and how much of it.

    Raises:
        PreftuneError: for anything a user can mend, before anything is sent where that can be known; and if a budget is
            used up, with what was answered kept.
    """
    budget = Budget(settings.max_calls, settings.max_tokens)
    benchmarks = {
        benchmark.title: benchmark
        for benchmark in (
            open_benchmark(name, limit=settings.limit, seed=settings.seed) for name in settings.benchmarks
        )
    }
    asking = {
        title: [Asking(one, tuple(benchmark.examples(one, settings.shots))) for one in benchmark.questions]
        for title, benchmark in benchmarks.items()
    }
    given = None if settings.prompts is None else read_rewrites(settings.prompts)
    spent: dict[str, Spent] = {}
    with _Crew(settings, out / KEPT, budget) as crew:
        wordings = {NAIVE: {title: [Wording(one.question.prompt) for one in some] for title, some in asking.items()}}
        for name in settings.optimizers:
            wordings[name] = _rewritten(name, asking, crew, settings, spent, progress)
        if given is not None:
            wordings[str(settings.prompts)] = _given(str(settings.prompts), given, asking, settings)
        answered = [
            one
            for name in settings.generators
            for one in _answers(name, benchmarks, asking, wordings, crew, settings, spent, progress)
        ]
    found = Evaluated(
        benchmarks=benchmarks,
        asking=asking,
        wordings=wordings,
        answered=answered,
        spent=spent,
        calls=budget.calls,
        tokens=budget.tokens,
        seed=settings.seed,
    )
    found.write(out, settings)
    return found


def read_rewrites(path: Path) -> dict[str, str]:
    """Rewrites of a file, by the ids of their prompts: what `preftune prompts optimize --out` writes, or rows with
    `prompt` and `optimized` (or rewrite, chosen).

    Raises:
        PreftuneError: if it cannot be read, or has two rewrites of one prompt.
    """
    found: dict[str, str] = {}
    for where, row in rows(path):
        prompt = next((row[name] for name in ORIGINAL if name in row), None)
        rewrite = next((row[name] for name in OPTIMISED if name in row), None)
        if not isinstance(prompt, str) or not isinstance(rewrite, str) or not prompt.strip():
            raise PreftuneError(f"{where}: expected the texts prompt and optimized (or rewrite, or chosen)")
        if found.setdefault(prompt_id(prompt), rewrite) != rewrite:
            raise PreftuneError(f"{where}: a second rewrite of a prompt that stands further up, expected one of each")
    return found


def _rewritten(
    name: str,
    asking: Mapping[str, Sequence[Asking]],
    crew: _Crew,
    settings: EvaluateSettings,
    spent: dict[str, Spent],
    progress: Progress,
) -> dict[str, list[Wording]]:
    """What an optimiser makes of each prompt; the same prompt is rewritten once."""
    prompts = list(dict.fromkeys(one.question.prompt for some in asking.values() for one in some))
    short = [prompt for prompt in prompts if len(prompt) <= LONGEST]
    if not short:
        raise PreftuneError(
            f"all prompts have more than {LONGEST:,} characters, which no optimiser is asked to rewrite: shorten them"
        )
    by_prompt = {prompt: Wording(prompt, "it is too long to be rewritten") for prompt in prompts}
    with crew.rewriter(name) as opened:
        counting = CountingGenerator(opened.generator)
        rewriter, told = Rewriter(counting, opened.template), _told(progress, f"rewrites of {name}")
        if settings.guard:
            for made in optimize(short, rewriter, settings.optimizing, progress=lambda _, *done: told(*done)):
                first = made.tried[0]  # the most probable rewrite
                by_prompt[made.original] = (
                    Wording(made.text) if made.changed else Wording(made.text, first.problem or made.reason, first.text)
                )
        else:
            asked = [Asked(prompt, settings.words) for prompt in short]
            sampling = GeneratorSampling(max_new_tokens=FEWEST_TOKENS, seed=settings.seed)
            for one, (reply, *_) in zip(asked, rewriter.replies(asked, sampling, told), strict=True):
                by_prompt[one.prompt] = _as_written(one, reply)
    spent[f"optimiser {name}"] = counting.spent
    return {title: [by_prompt[one.question.prompt] for one in some] for title, some in asking.items()}


def _given(
    name: str, given: Mapping[str, str], asking: Mapping[str, Sequence[Asking]], settings: EvaluateSettings
) -> dict[str, list[Wording]]:
    """Rewrites that a file has; a prompt that it lacks stays as it is."""
    found: dict[str, list[Wording]] = {}
    for title, some in asking.items():
        found[title] = []
        for one in some:
            rewrite, prompt = given.get(prompt_id(one.question.prompt)), one.question.prompt
            found[title].append(
                Wording(prompt, "the file has no rewrite of it")
                if rewrite is None
                else _checked(prompt, rewrite.strip(), settings)
            )
    if not any(not wording.refused for some in found.values() for wording in some):
        raise PreftuneError(
            f"{name} has no rewrite of any question that can be used: its prompts must be those of the benchmarks"
        )
    return found


def _checked(prompt: str, rewrite: str, settings: EvaluateSettings) -> Wording:
    """A rewrite, or the prompt itself and why."""
    if not settings.guard:
        return _as_written(Asked(prompt), Reply(rewrite))
    reason = problem(prompt, rewrite, settings.marks, Asked(prompt, settings.words).limit)
    return Wording(rewrite) if reason is None else Wording(prompt, reason, rewrite)


def _as_written(asked: Asked, reply: Reply) -> Wording:
    """A rewrite whatever it says, if there is one."""
    if reply.refused or not reply.ended or not reply.text.strip():
        return Wording(asked.prompt, reply.refused or ("it is empty" if reply.ended else "it was cut"), reply.text)
    return Wording(reply.text)


def _answers(
    name: str,
    benchmarks: Mapping[str, Benchmark],
    asking: Mapping[str, Sequence[Asking]],
    wordings: Mapping[str, Mapping[str, Sequence[Wording]]],
    crew: _Crew,
    settings: EvaluateSettings,
    spent: dict[str, Spent],
    progress: Progress,
) -> Iterator[Answered]:
    """What one generator answers to all wordings; the same text is put to it once."""
    texts = {
        (wording, title): [
            benchmark.ask(one.question, said.text, settings.shots)
            for one, said in zip(asking[title], wordings[wording][title], strict=True)
        ]
        for wording in wordings
        for title, benchmark in benchmarks.items()
    }
    unique = list(dict.fromkeys(text for some in texts.values() for text in some))
    with crew.generator(name) as generator:
        for decoding, sampling in settings.decodings.items():
            replies = _written(
                generator, unique, replace(sampling, stop=(NEXT,)), _told(progress, f"{decoding} answers of {name}")
            )
            by_text = dict(zip(unique, replies, strict=True))
            for (wording, title), some in texts.items():
                mine = [by_text[text] for text in some]
                spent[f"generator {name}, {decoding}, {wording}, {title}"] = Spent.on(mine)
                scored = [
                    [benchmarks[title].score(one.question, reply.text) for reply in them]
                    for one, them in zip(asking[title], mine, strict=True)
                ]
                yield Answered(name, decoding, wording, title, some, mine, scored)


def _written(
    generator: Generator, texts: Sequence[str], sampling: GeneratorSampling, progress: Callable[[int, int], object]
) -> list[list[Reply]]:
    replies = generator.write(texts, sampling, progress)
    refused = [some[0].refused for some in replies if some[0].refused]
    if len(refused) == len(texts):
        raise PreftuneError(f"generator {generator.name} answered none of {len(texts):,} prompts ({refused[0]})")
    return replies


class _Crew:
    """Optimisers and generators. All that is on endpoints is opened at once, so that the budget knows what they spent
    before and a wrong name costs nothing; models here are loaded when it is their turn."""

    def __init__(self, settings: EvaluateSettings, folder: Path, budget: Budget) -> None:
        self._folder, self._stack = folder, ExitStack()
        self._use = EndpointUse(
            max_calls=None,
            concurrency=settings.concurrency,
            timeout=settings.timeout,
            key_variable=settings.key_variable,
            budget=budget,
        )
        self._open: dict[str, Rewriter | Generator] = {}
        try:
            for name in settings.optimizers:
                if is_remote(name):
                    self._open[f"o {name}"] = self._stack.enter_context(self._rewriter(name))
            for name in settings.generators:
                if is_remote(name):
                    self._open[f"g {name}"] = self._stack.enter_context(self._generator(name))
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _rewriter(self, name: str) -> Rewriter:
        return open_rewriter(name, self._folder / f"optimizer-{digest(name)}", use=self._use)

    def _generator(self, name: str) -> Generator:
        return open_generator(name, self._folder / f"generator-{digest(name)}", use=self._use)

    @contextmanager
    def rewriter(self, name: str) -> Iterator[Rewriter]:
        """An optimiser, loaded for as long as it is at work."""
        found = self._open.get(f"o {name}")
        if isinstance(found, Rewriter):
            yield found
        else:
            with self._rewriter(name) as loaded:
                yield loaded

    @contextmanager
    def generator(self, name: str) -> Iterator[Generator]:
        """Likewise a generator."""
        found = self._open.get(f"g {name}")
        if isinstance(found, Generator):
            yield found
        else:
            with self._generator(name) as loaded:
                yield loaded


def _title(benchmark: str) -> str:
    return benchmark.partition("=")[0].partition(":")[0].strip()


def _told(progress: Progress, what: str) -> Callable[[int, int], object]:
    return lambda done, total: progress(what, done, total)
