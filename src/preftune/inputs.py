"""What a policy reads of its data: the records as that model's tokens."""

from __future__ import annotations

from preftune.config import RunConfig
from preftune.data import dataset
from preftune.errors import PreftuneError
from preftune.policy import loading


def render(records: dataset.Records, loaded: loading.Loaded, config: RunConfig) -> dataset.Examples:
    """Token ids that the model can read."""
    data, longest = config.data, loading.positions(loaded.lm)
    if records.plain and not data.rendering.text_as_chat and data.rendering.chat_template is not None:
        raise PreftuneError(
            "data.rendering.chat_template is given, but the data is plain text, which is taken as it is: set "
            "data.rendering.text_as_chat=true, or leave the template out"
        )
    if longest is not None and longest < (data.rendering.max_length or longest + 1):
        data = data.model_copy(update={"rendering": data.rendering.model_copy(update={"max_length": longest})})
    examples = dataset.render(records, loaded.tokenizer, data)
    if examples.chat_template is not None:
        loaded.tokenizer.chat_template = examples.chat_template  # saved with the model: it was trained in this form
    known = loading.vocabulary(loaded.lm)
    if known is not None and examples.largest >= known:
        raise PreftuneError(
            f"the tokenizer gives token {examples.largest}, but the model knows tokens 0 to {known - 1}: they do not "
            "belong together, check model.tokenizer"
        )
    return examples
