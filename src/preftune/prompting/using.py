"""Prompts optimised by names: what Python users, the command and the server call."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, overload

from preftune.errors import PreftuneError
from preftune.evaluation.budget import Budget
from preftune.evaluation.judges import EndpointUse, open_judge
from preftune.evaluation.judges.base import digest
from preftune.prompting.choosing import RUBRIC, ExamplesChooser, JudgeChooser
from preftune.prompting.generators import Generator, GeneratorSampling, Progress, open_generator
from preftune.prompting.optimize import Chooser, Optimized, OptimizeSettings, optimize
from preftune.prompting.rewriter import open_rewriter
from preftune.prompting.template import Template

Stage = Callable[[str, int, int], object]  # name, done, of


@dataclass(frozen=True, kw_only=True)
class Rerank:
    """Who says which rewrite is best, and whether it is better than the prompt: a judge, or examples.

    Attributes:
        judge: its name. With a generator it compares answers, else prompts.
        rubric: text with {prompt}, {first}, {second}, for a judge behind an endpoint.
        examples: questions with right answers: a benchmark, as `prompting.benchmarks.open_benchmark` takes it.
        generator: who answers: name of a generator.
        limit: most examples.
        answer_tokens: tokens at which an answer is cut.
    """

    judge: str | None = None
    rubric: Path | None = None
    examples: str | None = None
    generator: str | None = None
    limit: int | None = None
    answer_tokens: int = 512

    def __post_init__(self) -> None:
        if self.judge is not None and self.examples is not None:
            raise PreftuneError("a judge and examples are two ways to choose: name one of them")
        if self.examples is not None and self.generator is None:
            raise PreftuneError("examples must be answered by somebody: name a generator")
        if self.generator is not None and self.judge is None and self.examples is None:
            raise PreftuneError("answers of a generator must be compared: name a judge, or examples")
        for name, value, needs in (("rubric", self.rubric, self.judge), ("limit", self.limit, self.examples)):
            if value is not None and needs is None:
                raise PreftuneError(f"{name} is given, and nothing that takes it: leave it out")

    def __bool__(self) -> bool:
        return self.judge is not None or self.examples is not None


@contextmanager
def open_optimizer(
    model: str,
    settings: OptimizeSettings,
    *,
    template: Path | Template | None = None,
    rerank: Rerank | None = None,
    folder: Path | None = None,
    use: EndpointUse | None = None,
    progress: Stage | None = None,
) -> Iterator[Callable[[Sequence[str]], list[Optimized]]]:
    """What optimises prompts, until the context ends.

    Args:
        model: a run of `preftune prompts train`, or any generator.
        settings: how.
        template: how it is asked; None: as in its training, or the built-in template.
        rerank: who chooses; None: the first rewrite that may be used.
        folder: where all that was written and judged is kept, and replayed from.
        use: of endpoints, all of which share its budget.
        progress: told what is done, and how much of how much.

    Raises:
        PreftuneError: if something named is not there.
    """
    use = use or EndpointUse()
    if use.budget is None:
        shared = Budget(use.max_calls, use.max_tokens)
        use = EndpointUse(**{**vars(use), "max_calls": None, "max_tokens": None, "budget": shared})

    def tell(stage: str) -> Progress | None:
        return None if progress is None else partial(progress, stage)

    with ExitStack() as stack:
        rewriter = stack.enter_context(
            open_rewriter(model, _kept(folder, "optimiser", model), template=template, use=use)
        )
        chooser = _chooser(rerank, settings, folder, use, stack) if rerank else None

        def run(prompts: Sequence[str]) -> list[Optimized]:
            return optimize(prompts, rewriter, settings, chooser=chooser, progress=tell("rewrites"))

        yield run


def _kept(folder: Path | None, kind: str, name: str) -> Path | None:
    return None if folder is None else folder / f"{kind}-{digest(name)}"


def _chooser(
    rerank: Rerank, settings: OptimizeSettings, folder: Path | None, use: EndpointUse, stack: ExitStack
) -> Chooser:
    generator: Generator | None = None
    if rerank.generator is not None:
        kept = _kept(folder, "generator", rerank.generator)
        generator = stack.enter_context(open_generator(rerank.generator, kept, use=use))
    sampling = GeneratorSampling(max_new_tokens=rerank.answer_tokens, seed=settings.seed)
    if rerank.examples is not None and generator is not None:
        from preftune.prompting.benchmarks import open_benchmark

        examples = open_benchmark(rerank.examples, limit=rerank.limit, seed=settings.seed)
        return ExamplesChooser(examples, generator, sampling)
    name = str(rerank.judge)
    rubric = rerank.rubric
    if rubric is None and generator is None and name.startswith("endpoint:"):
        rubric = RUBRIC
    judge = open_judge(name, _kept(folder, "judge", f"{name} {rubric}"), rubric=rubric, use=use)
    return JudgeChooser(stack.enter_context(judge), generator, sampling)


@overload
def optimize_prompt(prompt: str, model: str, **options: Any) -> Optimized: ...
@overload
def optimize_prompt(prompt: Sequence[str], model: str, **options: Any) -> list[Optimized]: ...
def optimize_prompt(prompt: str | Sequence[str], model: str, **options: Any) -> Optimized | list[Optimized]:
    """Rewrite a prompt, or several, so that a language model answers it better.

    Numbers, quotations, code, answer options, links and what is marked stay byte for byte as they are, and so does the
    language. Where no rewrite holds to that, the original comes back, with the reason.

    Args:
        prompt: a naive prompt, or several.
        model: a run of `preftune prompts train`, or any generator: model folder, hub id, endpoint:URL#MODEL,
            package.module:function.
        **options: fields of `OptimizeSettings` (candidates, temperature, words, marks, ...) and of `Rerank` (judge,
            examples, generator, ...); template; folder, in which what was written is kept; use, of endpoints.

    Returns:
        For each prompt `text`, `changed`, `reason`, `tried`.

    Raises:
        PreftuneError: for anything a user can mend.
    """
    of_settings, of_rerank = ({field.name for field in fields(kind)} for kind in (OptimizeSettings, Rerank))
    known = of_settings | of_rerank | {"template", "folder", "use"}
    if unknown := sorted(set(options) - known):
        near = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
        raise PreftuneError(f"optimize_prompt has no option {unknown[0]!r}: {hint}")
    settings = OptimizeSettings(**{name: value for name, value in options.items() if name in of_settings})
    rerank = Rerank(**{name: value for name, value in options.items() if name in of_rerank})
    rest = {name: value for name, value in options.items() if name not in of_settings | of_rerank}
    with open_optimizer(model, settings, rerank=rerank, **rest) as run:
        found = run([prompt] if isinstance(prompt, str) else list(prompt))
    return found[0] if isinstance(prompt, str) else found
