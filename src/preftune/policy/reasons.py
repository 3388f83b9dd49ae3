"""What a library's exception says, as part of one of our sentences."""

from __future__ import annotations

LONGEST = 300


def reason(error: BaseException) -> str:
    """The first line of a library's message, and what follows it as far as a colon announces more."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    if isinstance(error, KeyError) and len(text.split()) == 1:
        return f"there is no key {text!r}"
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    said = lines[0]
    for line in lines[1:]:
        if not said.endswith(":"):
            break
        said += f" {line}"
    return said[:LONGEST].rstrip(".: ")
