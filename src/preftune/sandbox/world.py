"""The built-in world: short film reviews, their grammar, and a reward that is known exactly.

    prompt      A quiet comedy about two sisters.
    response    The jokes were really clever, but I disliked the ending. The cast was wooden.

A review is one or more sentences; a sentence is one clause, or two joined by ", and" or ", but". A clause judges one
aspect of the film ("the ending") by an adjective that suits it, or by a verb. `sample_review` writes reviews under a
hidden mood, from which the base model learns; `true_reward` is what the preferences of this world are made from.
"""

import random
import re
from collections.abc import Iterator
from typing import NamedTuple

# Valence of every judging word. An adjective suits all aspects, or those of one part.
ADJECTIVES: dict[str, dict[str, float]] = {
    "any": {
        "superb": 2.0,
        "wonderful": 2.0,
        "good": 1.0,
        "charming": 1.0,
        "memorable": 1.0,
        "forgettable": -1.0,
        "dull": -1.0,
        "weak": -1.0,
        "awful": -2.0,
        "terrible": -2.0,
    },
    "story": {"gripping": 2.0, "clever": 1.0, "moving": 1.0, "predictable": -1.0, "confusing": -1.0, "absurd": -2.0},
    "acting": {"magnetic": 2.0, "convincing": 1.0, "natural": 1.0, "wooden": -1.0, "stiff": -1.0, "lifeless": -2.0},
    "craft": {"gorgeous": 2.0, "elegant": 1.0, "vivid": 1.0, "drab": -1.0, "clumsy": -1.0, "hideous": -2.0},
}
VERBS: dict[str, float] = {"loved": 2.0, "enjoyed": 1.0, "disliked": -1.0, "hated": -2.0}
DEGREES: dict[str, float] = {"somewhat": 0.5, "really": 1.5, "utterly": 2.0}
NOT = -0.6
PARTS = ("story", "acting", "craft")


class Aspect(NamedTuple):
    """Something a review can judge: its part of the film, and its number."""

    part: str
    plural: bool


COMMON_ASPECTS: dict[str, Aspect] = {
    "plot": Aspect("story", False),
    "opening": Aspect("story", False),
    "ending": Aspect("story", False),
    "cast": Aspect("acting", False),
    "hero": Aspect("acting", False),
    "villain": Aspect("acting", False),
    "performances": Aspect("acting", True),
    "music": Aspect("craft", False),
    "photography": Aspect("craft", False),
    "editing": Aspect("craft", False),
    "costumes": Aspect("craft", True),
}
# Each genre has an aspect of its own, so that a review shows which prompt it answers.
GENRES: dict[str, tuple[str, Aspect]] = {
    "comedy": ("jokes", Aspect("story", True)),
    "drama": ("dialogue", Aspect("story", False)),
    "fantasy": ("effects", Aspect("craft", True)),
    "musical": ("songs", Aspect("craft", True)),
    "mystery": ("twists", Aspect("story", True)),
    "romance": ("couple", Aspect("acting", False)),
    "thriller": ("chases", Aspect("craft", True)),
    "western": ("landscapes", Aspect("craft", True)),
}
ASPECTS: dict[str, Aspect] = COMMON_ASPECTS | dict(GENRES.values())
LOOKS = ("French", "Korean", "long", "modern", "quiet", "short", "silent", "strange")
SUBJECTS = (
    *("a lighthouse", "a painter", "a robbery", "a shipwreck", "a wedding"),
    *("the circus", "the sea", "two brothers", "two sisters"),
)

# A review that `sample_review` writes has 34 tokens at most, and an end token.
MAX_RESPONSE_TOKENS = 40

_VALENCES = {word: v for words in ADJECTIVES.values() for word, v in words.items()} | VERBS
_TOKEN = re.compile(r"[A-Za-z]+|[.,]")


def tokens(text: str) -> list[str]:
    """The words and punctuation marks of a text, in order."""
    return _TOKEN.findall(text)


def prompts() -> tuple[list[str], list[str]]:
    """All prompts of this world, 448 to train on and 128 held out; every word of either occurs in both."""
    train: list[str] = []
    held_out: list[str] = []
    for i, look in enumerate(LOOKS):
        for j, genre in enumerate(GENRES):
            for k, subject in enumerate(SUBJECTS):
                # A Latin square: of each look and genre, two of the nine subjects are held out.
                target = held_out if (i + j + k) % len(SUBJECTS) < 2 else train
                target.append(f"A {look} {genre} about {subject}.")
    return train, held_out


def vocabulary() -> list[str]:
    """Every word and punctuation mark of prompts and reviews, sorted."""
    words = {"A", "about", "The", "the", "was", "were", "not", "I", "and", "but", ".", ","}
    words.update(LOOKS, GENRES, ASPECTS, _VALENCES, DEGREES)
    words.update(word for subject in SUBJECTS for word in subject.split())
    return sorted(words)


def components(text: str) -> dict[str, float]:
    """The reward of a review, split over the parts of the film: story, acting and craft.

    A clause is a run of words between full stops, commas, "and" and "but". Its valence is that of its first judging
    word (-2 to 2), times the factor of a degree word directly before it (somewhat 0.5, really 1.5, utterly 2), times
    -0.6 if "not" stands directly before these; it goes to the part of the first aspect that the clause names. A clause
    without a judging word or without an aspect counts nothing. The reward of a part is half the sum of the valences of
    its clauses. The rule is defined on any text and sees no grammar: report `grammatical` beside it.
    """
    parts = dict.fromkeys(PARTS, 0.0)
    for clause in _clauses(text):
        aspect = next((ASPECTS[word] for word in clause if word in ASPECTS), None)
        judging = next((i for i, word in enumerate(clause) if word in _VALENCES), None)
        if aspect is None or judging is None:
            continue
        valence, before = _VALENCES[clause[judging]], clause[:judging]
        if before and before[-1] in DEGREES:
            valence *= DEGREES[before.pop()]
        if before and before[-1] == "not":
            valence *= NOT
        parts[aspect.part] += valence / 2
    return parts


def true_reward(text: str) -> float:
    """The reward of a review: half the sum of the valences of its clauses, as `components` defines them."""
    return sum(components(text).values())


def grammatical(text: str) -> bool:
    """True if a text is a review as `sample_review` might write it, with any number of sentences in any mood.

    Holds numbers ("the songs were"), adjectives that suit their aspect, degree words that suit their adjective,
    capitals, punctuation and single spaces; white space around the review does not count.
    """
    return _REVIEW.fullmatch(text.strip()) is not None


def sample_review(rng: random.Random, prompt: str) -> str:
    """A review for a prompt: one to five clauses in a hidden mood. It starts with a space, to follow the prompt.

    Args:
        rng: source of all randomness.
        prompt: one of `prompts()`; its genre lends an aspect of its own.
    """
    genre = prompt.split()[2]
    aspects = dict.fromkeys(COMMON_ASPECTS, 1.0) | {GENRES[genre][0]: 4.0}
    mood = rng.choice((0.2, 0.5, 0.8))  # probability that a clause praises
    left = rng.choices((1, 2, 3, 4, 5), (0.15, 0.35, 0.28, 0.15, 0.07))[0]
    sentences = []
    while left:
        joined = min(left, rng.choices((1, 2), (0.55, 0.45))[0])
        left -= joined
        sentence, praised = "", False
        for k in range(joined):
            praise = rng.random() < mood
            if k:
                sentence += ", and " if praise == praised else ", but "
            name = rng.choices(list(aspects), list(aspects.values()))[0]
            del aspects[name]
            sentence += _sample_clause(rng, name, praise)
            praised = praise
        sentences.append(" " + sentence[0].upper() + sentence[1:] + ".")
    return "".join(sentences)


def _sample_clause(rng: random.Random, name: str, praise: bool) -> str:
    """A clause about one aspect that praises or blames it."""
    aspect = ASPECTS[name]
    if rng.random() < 0.2:
        verb = rng.choice([word for word, v in VERBS.items() if (v > 0) == praise])
        return f"I {'really ' if rng.random() < 0.2 else ''}{verb} the {name}"
    be = "were" if aspect.plural else "was"
    negated = rng.random() < 0.15
    wanted = praise != negated
    suited = {word: v for word, v in (ADJECTIVES["any"] | ADJECTIVES[aspect.part]).items() if (v > 0) == wanted}
    adjective = rng.choices(list(suited), [2 / abs(v) for v in suited.values()])[0]
    if negated:
        return f"the {name} {be} not {adjective}"
    if rng.random() < 0.3:
        return f"the {name} {be} {rng.choice(_degrees(suited[adjective]))} {adjective}"
    return f"the {name} {be} {adjective}"


def _degrees(valence: float) -> tuple[str, str]:
    """Degree words that go with a mild or a strong adjective: nothing is "somewhat superb" or "utterly good"."""
    return ("really", "utterly") if abs(valence) > 1 else ("somewhat", "really")


def _clauses(text: str) -> Iterator[list[str]]:
    clause: list[str] = []
    for word in tokens(text):
        if word in (".", ",", "and", "but"):
            yield clause
            clause = []
        else:
            clause.append(word)
    yield clause


def _review_pattern() -> re.Pattern[str]:
    """A regular expression for the whole grammar."""

    def one_of(words: list[str]) -> str:
        return f"(?:{'|'.join(words)})"

    judged = []
    for part in PARTS:
        predicate = [f"(?:not )?{word}" for word in ADJECTIVES["any"] | ADJECTIVES[part]]
        for word, valence in (ADJECTIVES["any"] | ADJECTIVES[part]).items():
            predicate.append(f"{one_of(list(_degrees(valence)))} {word}")
        for be, plural in (("was", False), ("were", True)):
            names = [name for name, aspect in ASPECTS.items() if aspect == (part, plural)]
            judged.append(f"{one_of(names)} {be} {one_of(predicate)}")
    liked = f"I (?:really )?{one_of(list(VERBS))} the {one_of(list(ASPECTS))}"
    first, later = f"(?:The {one_of(judged)}|{liked})", f"(?:the {one_of(judged)}|{liked})"
    sentence = rf"{first}(?:, (?:and|but) {later})?\."
    return re.compile(f"{sentence}(?: {sentence})*")


_REVIEW = _review_pattern()
