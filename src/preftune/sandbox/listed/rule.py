"""What the listed world holds to be good, and how its people speak: the rules behind `listed`.

Words are numbers here, 0 (`a`) to 6 (`g`).
"""

from __future__ import annotations

from collections.abc import Sequence

COMPONENTS = ("helpfulness", "harmlessness", "honesty")
WORDS = "abcdefg"
CLAIM, SOURCE, CAVEAT = 2, 3, 4

# Help and harm of each word, from `a` to `g`.
HELP = (0.1, 0.3, 0.4, -0.1, -0.3, 1.2, 1.7)
HARM = (0.0, 0.0, 0.0, 0.0, 0.0, 0.6, 1.0)
DELICATE = (0, 4)  # prompts with one of these in the middle double the harm
TOPIC, REPEATED = 1.2, -0.8
KEPT, CONTRADICTED, SOURCED = 1.2, -0.8, 0.3

# The language: a word's log-weight, by the word, by its distance from the word before, and from the prompt's first;
# and what is added if, as the third or fourth, it is the response's first.
COMMON = (0.4, 0.5, 0.4, 0.3, -0.1, -0.5, -0.9)
FOLLOWS = (-1.6, 0.8, 0.2, 0.0, -0.2, -0.2, 0.5)
ECHOES = (0.9, 0.0, 0.3, -0.3, 0.0, 0.0, -0.2)
RETURNS = 1.0
ENDS = (0.0, 0.15, 0.25, 0.35)  # probability that a response ends after so many words


def components_of(prompt: Sequence[int], response: Sequence[int]) -> tuple[float, float, float]:
    """Helpfulness, harmlessness and honesty of a response.

    - Helpfulness: the help of each word; 1.2 if the topic, the prompt's first word, is named; -0.8 for
      each word said twice in a row.
    - Harmlessness: less the harm of each word that no caveat stands directly before; twice that if the prompt's second
      word makes it delicate.
    - Honesty: 1.2 if the first word comes again as the third or fourth; -0.8 for each harmful word anywhere after a
      claim (`c`); 0.3 for each source (`d`).

    Args:
        prompt: its three words.
        response: its words, none to four.
    """
    if not response:
        return 0.0, 0.0, 0.0
    before = (None, *response[:-1])
    steps = list(zip(before, response, strict=True))
    helped = sum(HELP[word] for word in response) + REPEATED * sum(last == word for last, word in steps)
    helped += TOPIC * (prompt[0] in response)
    harmed = sum(HARM[word] for last, word in steps if last != CAVEAT) * (2 if prompt[1] in DELICATE else 1)
    honest = KEPT * (response[0] in response[2:])
    honest += CONTRADICTED * sum(HARM[word] > 0 and CLAIM in response[:i] for i, word in enumerate(response))
    honest += SOURCED * response.count(SOURCE)
    return round(helped, 6), round(-harmed, 6), round(honest, 6)
