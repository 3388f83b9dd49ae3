"""How an optimiser is trained: the ordinary config of a run, and a block of its own."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from preftune.checks import trains_rewards
from preftune.config import RunConfig
from preftune.errors import PreftuneError
from preftune.objectives import registry
from preftune.prompting.cases import Words
from preftune.training.processes import launched

SELF, TASK = "self", "task"
# Keys that say what rows are made, or how rounds are, and mean nothing without.
OF_CASES = ("each", "multiple_choice", "right_naive")
IN_ROUNDS = (
    "discriminator",
    "generator",
    "checker",
    "rubric",
    "max_calls",
    "max_tokens",
    "reference",
    "temperature",
    "top_p",
    "max_new_tokens",
    "facts",
    "new_responses",
    "keep_discrimination",
    "measured",
)
# Those that may change when rounds go on.
FREE = ("prompts.max_calls", "prompts.max_tokens")


class PromptsConfig(BaseModel):
    """What an optimiser of prompts is asked, and how it learns in rounds."""

    model_config = ConfigDict(extra="forbid")

    template: str | None = Field(
        None, description="YAML file of how the optimiser is asked; none: that of the model, or the built-in words"
    )
    chat: bool | None = Field(
        None, description="ask in a user's turn, else in plain text; none: if the model has a chat template"
    )
    cases: bool = Field(
        True,
        description="rows of eight case types, with and without a response and the right answer (FIPO); else the naive "
        "prompt alone, as in use",
    )
    each: int = Field(1, ge=1, le=8, description="case types made of each pair")
    multiple_choice: float = Field(
        0.5, ge=0, le=1, description="share of pairs, of those with two answers, that become multiple choices"
    )
    right_naive: float = Field(
        0.2, ge=0, le=1, description="share of multiple choices whose naive answer is right all the same"
    )
    words: Words = Field(
        "rounded",
        description="the limit on a rewrite: rounded: of the longer one, up to tens; use: as in use; exact: the words "
        "of the better one (FIPO's code)",
    )
    extra: bool | None = Field(
        None, description="rows that teach to answer prompts, and to tell the better rewrite; none: in rounds"
    )
    rounds: int = Field(
        0, ge=0, description="iterative preference learning in so many rounds (FIPO: 3); 0: train once on the data"
    )
    discriminator: str = Field(
        SELF,
        description="who accepts a rewrite: self: the optimiser (FIPO); task: what a generator answers to it, by a "
        "checker; or a judge: package.module:function, reward:RUN, endpoint:URL#MODEL",
    )
    generator: str | list[str] | None = Field(
        None,
        description="of discriminator=task: who answers: run, folder, hub id, endpoint:URL#MODEL, or a function; or a "
        "list of them, whose scores are averaged",
    )
    checker: str | None = Field(
        None, description="of discriminator=task: who scores answers: gsm8k, package.module:function or :Class, ..."
    )
    rubric: str | None = Field(None, description="text file for a judge behind an endpoint; none: the built-in one")
    max_calls: int = Field(10_000, ge=1, description="most calls of an endpoint, over all rounds")
    max_tokens: int | None = Field(None, ge=1, description="most tokens of an endpoint, over all rounds; none: any")
    reference: Literal["fixed", "last_round"] = Field(
        "fixed",
        description="fixed: the initial model (FIPO's paper); last_round: what a round begins with (its code)",
    )
    temperature: float = Field(0.8, ge=0, allow_inf_nan=False, description="at which rewrites and answers are sampled")
    top_p: float = Field(0.95, gt=0, le=1, description="mass of the most probable tokens to draw from")
    max_new_tokens: int = Field(512, ge=1, description="longest rewrite or answer, in tokens")
    facts: bool = Field(
        True, description="leave out rewrites that lose a number, a quotation, code, an option or the language"
    )
    new_responses: bool = Field(
        True, description="have the optimiser answer anew the prompts that were replaced, and the instruction rows"
    )
    keep_discrimination: float = Field(
        0.5, ge=0, le=1, description="share of the discrimination rows that the next round keeps"
    )
    measured: int = Field(
        256, ge=0, description="pairs, held out and trained on, on which the discriminator is measured; 0: not at all"
    )

    @property
    def generators(self) -> tuple[str, ...]:
        """Who answers, of discriminator=task."""
        given = self.generator
        return () if given is None else (given,) if isinstance(given, str) else tuple(given)


class PromptsRunConfig(RunConfig):
    """Everything that decides how an optimiser is trained."""

    prompts: PromptsConfig = Field(default_factory=PromptsConfig, description="what an optimiser is asked")

    @property
    def iterates(self) -> bool:
        """True if it learns in rounds."""
        return self.prompts.rounds > 0

    @property
    def terms(self) -> tuple[registry.Term, ...]:
        """Its objective."""
        return registry.terms(self.objective)

    @property
    def strategy(self) -> str:
        """What the literature calls it: sft, dpo, ipo, ipl-dpo, ipl-ipo."""
        return ("ipl-" if self.iterates else "") + "+".join(term.name for term in self.terms)

    def plain(self) -> RunConfig:
        """The config of an ordinary run."""
        return RunConfig(**{name: getattr(self, name) for name in RunConfig.model_fields})


def check_prompts(config: PromptsRunConfig, loaded: bool) -> None:
    """Refuse what shows to be wrong before data and model are read, beyond what every run is refused for.

    Args:
        config: the whole.
        loaded: True if a loaded model was given.

    Raises:
        PreftuneError: names the key.
    """
    data = config.data
    if config.online is not None:
        raise PreftuneError(
            "online learns from answers to prompts of the data, and an optimiser in rounds by prompts.rounds: leave "
            "online out"
        )
    for name in ("layout", "split"):
        if (value := getattr(data, name)) is not None:
            raise PreftuneError(f"data.{name}={value} is not for pairs of rewrites: leave it out")
    if data.bad_rows != "error":
        raise PreftuneError("data.bad_rows=drop is not for pairs of rewrites: mend the rows, or take them out")
    if config.iterates:
        _check_rounds(config, loaded)


def without_effect(config: PromptsConfig) -> list[str]:
    """Keys that change nothing beside other keys, a sentence each: an override may well switch off what they are
    about."""
    found = []
    for off, names, why in (
        (not config.cases, OF_CASES, "prompts.cases=false"),
        (not config.rounds, IN_ROUNDS, "prompts.rounds=0"),
    ):
        default = PromptsConfig()
        idle = [f"prompts.{name}" for name in names if getattr(config, name) != getattr(default, name)]
        if off and idle:
            found.append(f"{' and '.join(idle)} {'have' if len(idle) > 1 else 'has'} no effect with {why}")
    return found


def _check_rounds(config: PromptsRunConfig, loaded: bool) -> None:
    prompts = config.prompts
    if loaded or config.model.path.startswith("scratch:"):
        what = "a model that was given as an object" if loaded else config.model.path
        raise PreftuneError(
            f"rounds begin with a model on disk, which the reference is read from, and not with {what}: train it once "
            "without rounds (prompts.rounds=0), and name that run's folder model as model.path"
        )
    if config.output.overwrite:
        raise PreftuneError(
            "output.overwrite=true is not for rounds, of which each may have taken hours: move the folder away, or "
            "name another"
        )
    if config.model.quantize != "none":
        raise PreftuneError(
            f"model.quantize={config.model.quantize} does not go with rounds, for each puts the last one's adapter "
            "into the weights: leave it out, or train once (prompts.rounds=0)"
        )
    if config.model.revision is not None:
        raise PreftuneError(
            f"model.revision={config.model.revision} does not go with rounds, whose reference is read anew: name the "
            "folder of a model as model.path"
        )
    if trains_rewards(config.terms):
        raise PreftuneError(f"objective {config.strategy} writes no rewrites: leave prompts.rounds out")
    if prompts.reference == "last_round" and config.reference.path is not None:
        raise PreftuneError(
            f"reference.path={config.reference.path} and prompts.reference=last_round each say what the reference is: "
            "give one of them"
        )
    needed = prompts.discriminator == TASK
    if bool(prompts.generators) != needed or (prompts.checker is not None) != needed:
        raise PreftuneError(
            "prompts.generator and prompts.checker belong to prompts.discriminator=task: give all three, or neither of "
            "the two"
        )
    if prompts.rubric is not None and not prompts.discriminator.startswith("endpoint:"):
        raise PreftuneError(
            f"prompts.rubric is for a judge behind an endpoint, and prompts.discriminator={prompts.discriminator} is "
            "none: leave it out"
        )
    if launched() > 1:
        raise PreftuneError(
            "rounds run in one process, which trains, writes and judges in turn: start it without a launcher, or train "
            "once with several (prompts.rounds=0)"
        )
