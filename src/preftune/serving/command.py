"""The command `preftune serve`: a run or a model -> a server, until Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from preftune.errors import PreftuneError
from preftune.evaluation.models import find, load_policy
from preftune.policy.loading import positions
from preftune.serving.adapters import Adapters
from preftune.serving.server import Server
from preftune.serving.writer import Answering, Model


def serve(
    path: str, *, host: str, port: int, name: str | None, adapters: bool = False, say: Callable[[str], object]
) -> None:
    """Serve a model until Ctrl-C or SIGTERM.

    Args:
        path: run folder, folder, hub id or "sandbox".
        host: address to listen on.
        port: port; 0: any that is free.
        name: what clients call the model; None: `path`.
        adapters: let clients load LoRA adapters.
        say: told where it listens, once it does.

    Raises:
        PreftuneError: if the model cannot be opened, or the port is taken.
    """
    serve_until_stopped(open_model(path, name, adapters), host, port, say)


def serve_until_stopped(
    answering: Model | Answering, host: str, port: int, say: Callable[[str], object], what: str = ""
) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        answering: who answers.
        host: address to listen on.
        port: port; 0: any that is free.
        say: told where it listens, once it does, and that it has stopped.
        what: what is served; by default its name.

    Raises:
        PreftuneError: if the port is taken.
    """
    server = Server(answering, host, port)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        say(f"{server.url} serves {what or server.names[0]}; Ctrl-C ends it")
        server.run()
    except KeyboardInterrupt:
        say("stopped")
    finally:
        signal.signal(signal.SIGTERM, before)
        server.close()


def open_model(path: str, name: str | None = None, adapters: bool = False) -> Model:
    """A model as the server takes it; with `adapters`, clients may load LoRA adapters into it.

    Raises:
        PreftuneError: if it cannot be opened, or is no model that adapters can be loaded into.
    """
    named = find(path)
    if named.is_reward_model:
        raise PreftuneError(f"{path} is a reward model, which writes nothing: name a language model")
    loaded = load_policy(named)
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "mps" if torch.backends.mps.is_available() else "cpu"
    lm = loaded.lm.to(device)
    if adapters and not (isinstance(lm, PreTrainedModel) and not getattr(lm, "_hf_peft_config_loaded", False)):
        raise PreftuneError(
            f"{path} is no plain model of transformers, so no adapters can be loaded: leave --adapters out"
        )

    @contextmanager
    def generating() -> Iterator[nn.Module]:
        with torch.autocast(device, torch.bfloat16, enabled=cuda and torch.cuda.is_bf16_supported()):
            yield lm

    return Model(
        name=name or path,
        generating=generating,
        tokenizer=loaded.tokenizer,
        rendering=named.config.data.rendering,
        context=positions(lm),
        adapters=Adapters(lm) if adapters else None,
    )
