"""API keys come from the environment alone: a config that holds one is refused, and kept or printed text shows none."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

# What the keys of hubs, providers and clouds look like, passwords inside URLs, and private keys.
_KEY = re.compile(
    r"""(?<![\w-])(?:
        hf_[A-Za-z0-9]{30,}                             # Hugging Face
        | sk-(?=[\w-]*\d)[\w-]{20,}                     # OpenAI, Anthropic, OpenRouter, DeepSeek
        | (?:gsk_|xai-|r8_|nvapi-|tgp_v1_)[\w-]{20,}    # Groq, xAI, Replicate, NVIDIA, Together
        | gh[pousr]_[A-Za-z0-9]{30,} | github_pat_\w{20,} | glpat-[\w-]{20,}
        | (?:AKIA|ASIA)[0-9A-Z]{16} | AIza[\w-]{35} | xox[abprs]-[\w-]{10,}
    )
    | (?<=://)[^\s/:@]+:[^\s/@]+(?=@)
    | (?<=Bearer\ )[\w.~+/-]{16,}
    | -----BEGIN[ A-Z]*PRIVATE\ KEY-----.*""",
    re.VERBOSE | re.DOTALL,
)
# Names of what is secret, at the end of an option or key: --token, OPENAI_API_KEY; not batch.tokens or eos_token.
_NAME = re.compile(
    r"""(?:^|[-_.])(?:
        (?:api|access|secret|private)[-_]?key | secret | password | passwd
        | (?:auth|access|api|bearer|github|hf|hub|refresh|session|wandb)[-_]?token
    )$
    | (?:^-*|\.)token$""",
    re.VERBOSE | re.IGNORECASE,
)
HIDDEN = "***"


def is_secret(value: str, name: str = "") -> bool:
    """True if a text looks like an API key or holds a password, or if what it is called says so.

    Example:
        >>> is_secret("hf_" + "x" * 34), is_secret("anything", "judge.api_key"), is_secret("sk-learn", "batch.tokens")
        (True, True, False)
    """
    return bool(_KEY.search(value)) or bool(value and _NAME.search(name))


def hidden(text: str) -> str:
    """The text with asterisks for whatever looks like an API key or a password.

    Example:
        >>> hidden("cannot reach https://me:s3cret@example.org")
        'cannot reach https://***@example.org'
    """
    return _KEY.sub(HIDDEN, text)


def this_command() -> str:
    """The command that started this process, as one would type it again, without its secrets."""
    if not sys.argv[0]:
        return "python"
    program = Path(sys.argv[0])
    started_as_module = program.parts[-2:] == ("preftune", "__main__.py")  # python -m preftune
    return command_line(["preftune" if started_as_module else program.name, *sys.argv[1:]])


def command_line(words: Sequence[str]) -> str:
    """A command as one would type it again, without its secrets.

    Example:
        >>> command_line(["train.py", "--api-key", "abc", "--token=def", "batch.tokens=100"])
        'train.py --api-key *** --token=*** batch.tokens=100'
    """
    shown, secret = [], False
    for word in words:
        name, equals, value = word.partition("=")
        if secret and not word.startswith("-"):
            shown.append(HIDDEN)
        elif equals and value and _NAME.search(name):
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(shlex.quote(hidden(word)) if HIDDEN not in hidden(word) else hidden(word))
        secret = word.startswith("-") and not equals and bool(_NAME.search(word))
    return " ".join(shown)
