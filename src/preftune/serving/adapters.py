"""LoRA adapters that clients load into a served model, and take out again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from preftune.quiet import without_progress_bars
from preftune.serving.asked import RequestError


class Adapters:
    """The adapters on a model.

    Args:
        lm: a model of transformers, without adapters.
    """

    def __init__(self, lm: nn.Module) -> None:
        self._lm: Any = lm
        self._held = threading.Lock()  # one answers, or one changes what is there
        self.names: list[str] = []

    def load(self, name: str, path: str) -> None:
        """Put an adapter on the model, under a name.

        Raises:
            RequestError: if the name is taken, or there is no adapter for this model.
        """
        with self._held:
            if name in self.names:
                raise RequestError(400, f"there is an adapter {name[:80]} already: take it out first", "lora_name")
            if not (Path(path) / "adapter_config.json").is_file():
                raise RequestError(404, f"{path[:200]} holds no adapter (adapter_config.json)", "lora_path")
            try:
                with without_progress_bars():
                    self._lm.load_adapter(path, adapter_name=name)
            except Exception as error:  # whatever PEFT makes of files that somebody names
                raise RequestError(400, f"{path[:200]} does not fit: {error}"[:500], "lora_path") from None
            self._lm.disable_adapters()
            self.names.append(name)

    def unload(self, name: str) -> None:
        """Take an adapter out.

        Raises:
            RequestError: if there is none of this name.
        """
        with self._held:
            if name not in self.names:
                raise RequestError(404, f"there is no adapter {name[:80]}", "lora_name")
            self._lm.delete_adapter(name)
            self.names.remove(name)

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Meanwhile the model computes with this adapter; None: as it is."""
        with self._held:
            if name is not None:
                if name not in self.names:
                    raise RequestError(404, f"there is no adapter {name[:80]}", "model", "model_not_found")
                self._lm.enable_adapters()
                self._lm.set_adapter(name)
            try:
                yield
            finally:
                if name is not None:
                    self._lm.disable_adapters()
