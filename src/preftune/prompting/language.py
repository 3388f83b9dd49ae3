"""Whether two texts are in different languages, where that can be told."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache
from typing import Any

MOST = 4000  # characters that are looked at
FEWEST_WORDS = 6  # of a text whose language is told by its words; shorter ones only by their script
SURE, UNLIKELY = 0.75, 0.02  # probability that a text has of its own language, at least, and of the other's, at most
# What is told apart: the others of the model are spoken by few, and mostly found in typos of these.
LANGUAGES = (
    "af ar az be bg bn bs ca cs cy da de el en eo es et eu fa fi fr ga gl gu he hi hr hu hy id is it ja ka kk km kn ko "
    "la lt lv mk ml mn mr nl no pa pl pt ro ru sk sl sq sr sv sw ta te th tl tr uk ur uz vi zh"
)
MAIN, TRACE = 0.5, 0.15  # shares of letters: a script that a text is written in, and one that it only mentions
_WORD = re.compile(r"[^\W\d_]+")
_JAPANESE = {"HIRAGANA": "JAPANESE", "KATAKANA": "JAPANESE"}


def language_change(original: str, rewrite: str) -> str | None:
    """What changed, such as "en to de"; None if both are in one language, or nobody can tell.

    The script counts always; within one script, texts of six words or more whose language is beyond doubt.

    Example:
        >>> language_change("What is the capital of France?", "Qual \u00e8 la capitale della Francia oggi?")
        'en to it'
        >>> language_change("Sum?", "Somme?") is None, language_change("Sum?", "\u0421\u0443\u043c\u043c\u0430?")
        (True, 'latin to cyrillic')
    """
    original, rewrite = original[:MOST], rewrite[:MOST]
    before, after = _scripts(original), _scripts(rewrite)
    for script, share in after.items():
        if share >= MAIN and before and before.get(script, 0.0) < TRACE:
            return f"{max(before, key=lambda each: before[each]).lower()} to {script.lower()}"
    of_one, of_other = _languages(original), _languages(rewrite)
    if not of_one or not of_other:
        return None
    one, other = max(of_one, key=lambda code: of_one[code]), max(of_other, key=lambda code: of_other[code])
    sure = min(of_one[one], of_other[other]) >= SURE and max(of_one[other], of_other[one]) <= UNLIKELY
    return f"{one} to {other}" if sure else None


def _scripts(text: str) -> dict[str, float]:
    """Share of letters by script: the first word of a letter's Unicode name."""
    counts = Counter(_script(char) for char in text if char.isalpha())
    total = sum(counts.values())
    return {script: count / total for script, count in counts.items()}


@cache
def _script(char: str) -> str:
    first = unicodedata.name(char, "UNKNOWN").partition(" ")[0]
    return _JAPANESE.get(first, first)


def _languages(text: str) -> dict[str, float]:
    """Probability of each language; none where a text is too short to tell."""
    words = _WORD.findall(text)
    if len(words) < FEWEST_WORDS and not _without_spaces(text):
        return {}
    return {str(code): float(probability) for code, probability in _identifier().rank(" ".join(words))}


def _without_spaces(text: str) -> bool:
    shares = _scripts(text)
    return sum(shares.get(script, 0.0) for script in ("CJK", "JAPANESE", "THAI")) >= MAIN and len(text) >= FEWEST_WORDS


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(LANGUAGES.split())
    return identifier
