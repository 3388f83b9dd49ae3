"""An optimiser at work: a generator and the template it was trained with -> rewrites of prompts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from preftune.errors import PreftuneError
from preftune.evaluation.judges import EndpointUse
from preftune.prompting import template as templates
from preftune.prompting.generators import SANDBOX, Generator, GeneratorSampling, Progress, Reply, open_generator
from preftune.prompting.template import Template, words_in

LABEL = re.compile(
    r"(?:\*\*|#+ *)?(?:new|better|golden|optimi[sz]ed|improved|rewritten) prompt(?:\*\*)?:(?:\*\*)? *\n*", re.I
)
FENCE = re.compile(r"```\w*\n((?:(?!```).)*?)\n?```", re.DOTALL)
QUOTES = (('"', '"'), ("\u201c", "\u201d"))
LEAST_WORDS, MORE_WORDS = (
    40,
    2.0,
)  # of the limit on a rewrite, where nobody says: so many, or so many times the prompt's


@dataclass(frozen=True)
class Asked:
    """A prompt to be rewritten.

    Attributes:
        prompt: as it is.
        words: most words of the rewrite; None: twice those of the prompt, and at least 40 more.
        response: what a generator answered to it; only in training.
        ground_truth: the right answer; only in training.
    """

    prompt: str
    words: int | None = None
    response: str | None = None
    ground_truth: str | None = None

    @property
    def limit(self) -> int:
        """Most words of the rewrite."""
        return default_limit(self.prompt) if self.words is None else self.words


class Rewriter:
    """Rewrites prompts. Use it as a context manager.

    Args:
        generator: the optimiser; it is closed with this one.
        template: how it is asked.
    """

    def __init__(self, generator: Generator, template: Template) -> None:
        self.generator, self.template = generator, template

    def __enter__(self) -> Rewriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what the generator holds."""
        self.generator.close()

    def rewrite(
        self, asked: Sequence[Asked], sampling: GeneratorSampling, progress: Progress | None = None
    ) -> list[list[str]]:
        """Rewrites of each prompt, `sampling.samples` of them, as the optimiser wrote them but for what models put
        around an answer; an empty text where it refused or wrote nothing. Nothing says that they are any good.

        Raises:
            PreftuneError: as `Generator.write`.
        """
        return [[reply.text for reply in some] for some in self.replies(asked, sampling, progress)]

    def replies(
        self, asked: Sequence[Asked], sampling: GeneratorSampling, progress: Progress | None = None
    ) -> list[list[Reply]]:
        """As `rewrite`, with what is known of each: whether it was cut or refused, and its tokens.

        Raises:
            PreftuneError: as `Generator.write`.
        """
        inputs = [
            self.template.asked(
                self.template.optimizer_input(
                    one.prompt, one.limit, response=one.response, ground_truth=one.ground_truth
                ),
                self.generator.chat,
            )
            for one in asked
        ]
        written = self.generator.write(inputs, sampling, progress)
        return [[replace(reply, text=cleaned(reply.text)) for reply in some] for some in written]


def open_rewriter(
    name: str,
    folder: Path | None = None,
    *,
    template: Path | Template | None = None,
    use: EndpointUse | None = None,
    chat: bool | None = None,
) -> Rewriter:
    """An optimiser by its name: a run of `preftune prompts train`, which brings its template, or any generator.

    Args:
        name: as `open_generator` takes it.
        folder: where all it writes is kept, and replayed from.
        template: how it is asked; None: as in its training, or the built-in template.
        use: of an endpoint.
        chat: ask in a user's turn; None: as in its training, or if it has a chat template.

    Raises:
        PreftuneError: if there is no such optimiser, or the template cannot be read.
    """
    if chat is None:
        chat = _trained_in_chat(Path(name) / templates.ABOUT)
    if isinstance(template, Path):
        template = Template.read(template)
    elif template is None:
        template = template_of(name)
    return Rewriter(open_generator(name, folder, use=use, chat=chat), template)


def template_of(name: str) -> Template:
    """How an optimiser was asked in its training; the built-in template for any other model.

    Raises:
        PreftuneError: if its file cannot be read.
    """
    folder = Path(name)
    if name.startswith(SANDBOX):
        from preftune.sandbox.tasks import folder_of

        folder = folder_of(name.removeprefix(SANDBOX))
    own = folder / templates.FILE
    return Template.read(own) if own.is_file() else Template()


def _trained_in_chat(about: Path) -> bool | None:
    """What a run of `preftune prompts train` says of itself; None for any other generator."""
    if not about.is_file():
        return None
    try:
        return bool(json.loads(about.read_text(encoding="utf-8"))["chat"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PreftuneError(f"{about} cannot be read ({error}): restore it") from None


def default_limit(prompt: str) -> int:
    """Most words of a rewrite where nobody says."""
    words = words_in(prompt)
    return max(round(MORE_WORDS * words), words + LEAST_WORDS)


def cleaned(text: str) -> str:
    """A rewrite without what models put around it: a label, quotation marks or a fence around all of it.

    Example:
        >>> cleaned('**New prompt:** "Add 2 and 3."'), cleaned('Say "a" or "b"')
        ('Add 2 and 3.', 'Say "a" or "b"')
    """
    text = text.strip()
    text = LABEL.sub("", text, count=1).strip() if LABEL.match(text) else text
    if fenced := FENCE.fullmatch(text):
        text = fenced[1].strip()
    for begin, end in QUOTES:
        inner = text[1:-1]
        if len(text) > 1 and text.startswith(begin) and text.endswith(end) and not {begin, end} & set(inner):
            text = inner.strip()
    return text
