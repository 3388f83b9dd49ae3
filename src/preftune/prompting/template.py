"""What an optimiser is asked: a naive prompt and what is known of its answer -> the optimiser's input.

The blocks follow the modular template of FIPO (arXiv 2402.11811, section 3.2, equation 1): the naive prompt always, the
naive response and the ground truth where they are given. The wording is our own. Training mixes all combinations; in
use there is neither, as nobody knows the answer then.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml

from preftune import yaml_tree
from preftune.data.records import Message, Text
from preftune.errors import PreftuneError
from preftune.files import write_whole

FILE, ABOUT = "template.yaml", "prompts.json"  # in the folder of a run that trained an optimiser

# Slots of each block: those that must stand there, and those that may.
SLOTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "optimizer": (("prompt",), ("words", "known")),
    "response": (("response",), ()),
    "ground_truth": (("ground_truth",), ()),
    "plain_end": ((), ()),
    "instruction": (("prompt",), ("words",)),
    "discriminator": (("prompt", "first", "second"), ("known",)),
    "first": ((), ()),
    "second": ((), ()),
}
_SLOT = re.compile(r"\{([A-Za-z_]\w*)\}")


@dataclass(frozen=True, kw_only=True)
class Template:
    """Texts with slots, such as {prompt}. Other braces stay as they are.

    Attributes:
        optimizer: asks for a rewrite: {prompt}, {words} (most words of the rewrite), {known} (the next two blocks, as
            far as there is something to put into them).
        response: {response}, what a generator answered to the naive prompt.
        ground_truth: {ground_truth}, the right answer.
        plain_end: what follows the optimizer's text, and the discriminator's, for models without a chat template; a
            response begins right after it.
        instruction: asks for an answer: {prompt}, {words} (about as many words as the answer shall have).
        discriminator: asks which of two prompts is better: {prompt} (the naive one), {first}, {second}, {known} (the
            ground truth, if it is there).
        first: what the discriminator answers if the first is better.
        second: likewise for the second.
    """

    optimizer: str = (
        "Rewrite a prompt so that a language model that reads it answers it better.\n\n"
        "[Prompt]\n{prompt}\n[End of prompt]\n{known}\n"
        "Say clearly what is to be done, and how, if that helps. Keep every fact, number, quotation and answer option "
        "of the prompt exactly as it stands, and its language. Do not answer it. Use at most {words} words. Write the "
        "new prompt and nothing else."
    )
    response: str = "\n[What a model answered to it, which may be wrong]\n{response}\n[End of what a model answered]\n"
    ground_truth: str = "\n[What it should have answered]\n{ground_truth}\n[End of what it should have answered]\n"
    plain_end: str = "\n\nNew prompt:\n"
    instruction: str = "{prompt}\n\nAnswer in at most {words} words."
    discriminator: str = (
        "Two new prompts were written in place of an old one. Which of them keeps its facts, and will make a language "
        "model answer it better?\n\n"
        "[Old prompt]\n{prompt}\n[End of old prompt]\n{known}\n"
        "[Prompt A]\n{first}\n[End of prompt A]\n\n[Prompt B]\n{second}\n[End of prompt B]\n\n"
        "Answer with one letter: A or B."
    )
    first: str = "A"
    second: str = "B"

    def __post_init__(self) -> None:
        for name, (needed, allowed) in SLOTS.items():
            _check(name, getattr(self, name), needed, allowed)
        if not self.first.strip() or self.first.strip() == self.second.strip():
            raise PreftuneError(
                f"the template's first and second are {self.first!r} and {self.second!r}, expected two different words"
            )

    def optimizer_input(
        self, prompt: str, words: int, *, response: str | None = None, ground_truth: str | None = None
    ) -> str:
        """What asks for a rewrite of a prompt.

        Args:
            prompt: the naive prompt.
            words: most words of the rewrite.
            response: what a generator answered to it, if that is to be shown.
            ground_truth: the right answer, likewise.

        Example:
            >>> Template(optimizer="{prompt}{known}", response=" > {response}").optimizer_input("2+2?", 9, response="5")
            '2+2? > 5'
        """
        known = self._known(response, ground_truth)
        return _filled(self.optimizer, prompt=prompt.strip(), words=str(words), known=known)

    def instruction_input(self, prompt: str, words: int) -> str:
        """What asks for an answer to a prompt, of about so many words."""
        return _filled(self.instruction, prompt=prompt.strip(), words=str(words))

    def discriminator_input(self, prompt: str, first: str, second: str, *, ground_truth: str | None = None) -> str:
        """What asks which of two new prompts is better than the other, in place of a naive one."""
        given = {"prompt": prompt.strip(), "first": first.strip(), "second": second.strip()}
        return _filled(self.discriminator, **given, known=self._known(None, ground_truth))

    def asked(self, text: str, chat: bool) -> Text:
        """One of the texts above as a model reads it: a user's turn, or plain text with what ends it."""
        return (Message("user", text),) if chat else text + self.plain_end

    def _known(self, response: str | None, ground_truth: str | None) -> str:
        given = "" if response is None else _filled(self.response, response=response.strip())
        return given + ("" if ground_truth is None else _filled(self.ground_truth, ground_truth=ground_truth.strip()))

    @classmethod
    def read(cls, path: Path) -> Template:
        """A template from YAML: blocks by name; those that are left out are the built-in ones.

        Raises:
            PreftuneError: if it cannot be read, has an unknown block, or a block with a slot too many or too few.
        """
        if not path.is_file():
            raise PreftuneError(f"there is no template {path}: name a YAML file, or leave it out")
        given = yaml_tree.read(path)
        known = [field.name for field in fields(cls)]
        for name, text in given.items():
            if name not in known:
                near = difflib.get_close_matches(str(name), known, 1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
                raise PreftuneError(f"template {path} has the unknown block {name!r}: {hint}")
            if not isinstance(text, str):
                raise PreftuneError(f"template {path}: {name} is {text!r}, expected text")
        try:
            return cls(**given)
        except PreftuneError as error:
            raise PreftuneError(f"template {path}: {error}") from None

    def as_yaml(self) -> str:
        """As YAML that `read` takes."""
        return str(yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True, width=110))

    def write(self, path: Path) -> None:
        """Write it as YAML that `read` takes.

        Raises:
            OSError: if it cannot be written.
        """
        write_whole(path, self.as_yaml().encode())


def words_in(text: str) -> int:
    """Words of a text, as the limit counts them: pieces between white space."""
    return len(text.split())


def _check(name: str, text: str, needed: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    found = _SLOT.findall(text)
    known = (*needed, *allowed)
    for slot in found:
        if slot not in known:
            near = difflib.get_close_matches(slot, known, 1)
            expected = ", ".join(f"{{{each}}}" for each in known) or "no slots"
            hint = f"; did you mean {{{near[0]}}}?" if near else ""
            raise PreftuneError(f"block {name} has the slot {{{slot}}}, expected {expected}{hint}")
    for slot in needed:
        if slot not in found:
            raise PreftuneError(f"block {name} lacks the slot {{{slot}}}: say where it shall stand")


def _filled(text: str, **given: str) -> str:
    """All slots at once, so that braces in what is put in stay text."""
    return _SLOT.sub(lambda slot: given[slot[1]], text)
