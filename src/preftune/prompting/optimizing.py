"""The command `preftune prompts optimize`: prompts from an argument, standard input or a file -> optimised ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from preftune.errors import PreftuneError
from preftune.evaluation.judges import EndpointUse
from preftune.files import write_whole
from preftune.prompting.naive import read_prompts
from preftune.prompting.optimize import Optimized, OptimizeSettings
from preftune.prompting.using import Rerank, Stage, open_optimizer

OPTIMIZED, KEPT = "optimized.jsonl", "kept"
STDIN = "-"


def optimize_given(
    prompt: str | None,
    file: Path | None,
    model: str,
    settings: OptimizeSettings,
    *,
    template: Path | None = None,
    rerank: Rerank | None = None,
    out: Path | None = None,
    use: EndpointUse | None = None,
    progress: Stage | None = None,
) -> list[Optimized]:
    """Optimise what a user gave.

    Args:
        prompt: a prompt; None or "-": standard input, if there is no file.
        file: prompts.
        model: the optimiser.
        settings: how.
        template: how it is asked.
        rerank: who chooses.
        out: folder for optimized.jsonl, and for what was written: asked again, it is replayed.
        use: of endpoints.
        progress: told what is done.

    Raises:
        PreftuneError: for anything a user can mend.
    """
    if not model.strip():
        raise PreftuneError("nobody is named who rewrites: give --model RUN, endpoint:URL#MODEL or module:function")
    if file is not None and prompt is not None:
        raise PreftuneError(f"there is a prompt and the file {file}: give one of them")
    if file is not None:
        rows = read_prompts(file)
        names, texts = [row.id for row in rows], [row.prompt for row in rows]
        if not texts:
            raise PreftuneError(f"{file} holds no prompt, expected one a line, or rows with a column prompt")
    else:
        names, texts = [""], [_one(prompt)]
    folder = None if out is None else out / KEPT
    with open_optimizer(
        model, settings, template=template, rerank=rerank, folder=folder, use=use, progress=progress
    ) as run:
        found = run(texts)
    if out is not None:
        lines = [
            json.dumps(({"id": name} if name else {}) | each.as_json(), ensure_ascii=False) + "\n"
            for name, each in zip(names, found, strict=True)
        ]
        try:
            write_whole(out / OPTIMIZED, "".join(lines).encode(errors="replace"))
        except OSError as error:
            raise PreftuneError(f"cannot write {out / OPTIMIZED} ({error.strerror}): name another folder") from None
    return found


def _one(prompt: str | None) -> str:
    """The prompt of the command line, or of standard input but for the line end that a shell adds."""
    if prompt is not None and prompt != STDIN:
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise PreftuneError(f"the prompt is no UTF-8 text (character {error.start}): give text") from None
        if not prompt.strip():
            raise PreftuneError("the prompt is empty, expected text")
        return prompt
    if prompt is None and sys.stdin.isatty():
        raise PreftuneError("there is no prompt: give one, a --file, or text on standard input")
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PreftuneError(f"standard input is no UTF-8 text (byte {error.start}): give text") from None
    if not text.strip():
        raise PreftuneError("standard input is empty, expected a prompt")
    return text.removesuffix("\n").removesuffix("\r")
