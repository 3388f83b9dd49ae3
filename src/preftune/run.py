"""What `train` gives back: a run folder, and what one wants to look at in it."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from torch import nn
    from transformers import PreTrainedTokenizerBase


class Run:
    """A finished run.

    Attributes:
        path: the run folder.
        model: the trained model, if the run was made by this process.
        tokenizer: its tokenizer.
    """

    def __init__(
        self, path: Path, model: nn.Module | None = None, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        self.path, self.model, self.tokenizer = Path(path), model, tokenizer

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, in order: "kind" is "train", "eval" or "doctor"."""
        from preftune.report.reading import read

        return read(self.path).history

    @property
    def summary(self) -> dict[str, Any]:
        """What the run came to: steps, seconds, `before` and `after`."""
        values: dict[str, Any] = json.loads((self.path / "summary.json").read_text(encoding="utf-8"))
        return values

    def add_to_summary(self, **values: Any) -> None:
        """Keep further figures with the run, in its summary and its report."""
        from preftune.report.html import write
        from preftune.training.run_folder import RunFolder

        RunFolder(self.path).write_summary({**self.summary, **values})
        write(self.path)

    @property
    def report(self) -> Path:
        """The run's page, to open in a browser."""
        return self.path / "report.html"

    def plot(self) -> Figure:
        """Loss, accuracy, rewards, log-probs and gradient over steps, as one plotly figure."""
        from preftune.report.figures import overview
        from preftune.report.reading import read
        from preftune.report.trained import is_reward_model

        run = read(self.path)
        return overview(run.history, is_reward_model(run))
