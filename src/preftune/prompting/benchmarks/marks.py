"""Where a response says its answer: after "the answer is", in a box, or nowhere in particular."""

from __future__ import annotations

import re

MARK = re.compile(
    r"""(?:\b(?:answer|result|solution|conclusion)s?\b[*_`]*     # the answer
    (?:(?:[ ][^.\n:=]{0,60}?)??[ ](?:is|are|would[ ]be|will[ ]be|equals)\b(?![ ]+not\b)[ ]*:?
      |[ ]*[:=])
    |^[ ]*A:)
    [*_`\s]*""",
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
HASHES = re.compile(r"^[ \t]*####(.*)$", re.MULTILINE)


def after_mark(response: str) -> str | None:
    """What stands after the last "the answer is" or "Answer:", to the end; None if there is no such words, or nothing
    after them.

    Example:
        >>> after_mark("7 - 2 = 5. The answer is **5**."), after_mark("The answer is not 5.")
        ('5**.', None)
    """
    found = None
    for mark in MARK.finditer(response):
        rest = response[mark.end() :]
        if rest.strip(" .*_`\n"):
            found = rest
    return found


def boxed(response: str) -> str | None:
    """What stands in the last box of TeX; None if there is none."""
    boxes = BOX.findall(response)
    return boxes[-1].strip() if boxes else None


def bare(text: str) -> str:
    r"""A text without what only sets it off: stars, ticks, quotes, TeX's \text{} and dollar signs around it.

    Example:
        >>> bare("**(B)**"), bare(r"\text{Yes}")
        ('(B)', 'Yes')
    """
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    return text.replace("**", "").strip(" \t\n*_`\"'\u201c\u201d$")


def last_line(response: str) -> str:
    """The last line that is not blank; empty if all are."""
    lines = [line for line in response.splitlines() if line.strip()]
    return lines[-1] if lines else ""
