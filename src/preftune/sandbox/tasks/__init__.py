"""The built-in tasks: questions that small models answer well only if they are asked to work step by step.

families -> questions; wordings -> naive prompts and rewrites; generators (shipped) -> answers; score -> right or wrong
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from preftune.errors import PreftuneError
from preftune.prompting.template import Template

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Trained:
    """How a shipped model was trained.

    Attributes:
        seed: of its weights and its texts.
        hidden: its size.
        layers: its depth.
        steps: updates.
        understands: by family, the wordings of plans after which it writes down its steps; none: it was never shown
            steps, and learned to answer at once whatever the wording.
    """

    seed: int
    hidden: int
    layers: int
    steps: int
    understands: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


# Generators. An optimiser may learn from the answers of the first two, which have one wording of each family in common;
# the third, which is for the test alone, understands it too in four families of five.
SHIPPED = {
    "north": Trained(1, 96, 3, 1200, {"sum": (0, 1), "chain": (1, 2), "double": (0, 2), "gap": (0, 1), "cups": (1, 2)}),
    "south": Trained(2, 80, 4, 1200, {"sum": (1, 2), "chain": (0, 1), "double": (0, 1), "gap": (0, 2), "cups": (0, 2)}),
    "unseen": Trained(
        3, 112, 3, 1100, {"sum": (0, 1), "chain": (1, 2), "double": (0, 1), "gap": (0, 2), "cups": (0, 1)}
    ),
    "control": Trained(4, 96, 3, 1200),
}
OPTIMIZER = Trained(5, 96, 4, 800)  # restates naive prompts: what an optimiser starts from
SEEN, UNSEEN = ("north", "south"), "unseen"
LONGEST = 48  # tokens of a response or a rewrite

# What the built-in optimiser reads: words of its small vocabulary.
TEMPLATE = Template(
    optimizer="rewrite {prompt}",
    plain_end=" better :",
    response=" ; {response}",
    ground_truth=" ; answer {ground_truth}",
    instruction="{prompt}",
    discriminator="better for {prompt} : {first} ; {second}",
)


def folder_of(name: str) -> Path:
    """Where a shipped model lies: a name of `SHIPPED`, or "optimizer".

    Raises:
        PreftuneError: if there is none of this name.
    """
    known = [*SHIPPED, "optimizer"]
    if name not in known:
        raise PreftuneError(f"there is no built-in model sandbox:{name}, expected one of {', '.join(known)}")
    return HERE / name
