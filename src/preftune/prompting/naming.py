"""Names for prompts, the same for the same prompt in any file."""

from __future__ import annotations

import hashlib


def prompt_id(prompt: str) -> str:
    """16 hexadecimal digits; white space does not matter.

    Example:
        >>> prompt_id("Add 2  and 3") == prompt_id("Add 2 and 3\\n")
        True
    """
    return hashlib.sha256(" ".join(prompt.split()).encode()).hexdigest()[:16]
