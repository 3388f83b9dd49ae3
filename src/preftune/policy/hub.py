"""Whether the Hugging Face hub answers, asked once and before anything is loaded: each library below would try each
file again and again, and print a line about each time.
"""

from __future__ import annotations

from pathlib import Path

from preftune.policy.reasons import reason

# One of these is there if anything of a model or tokenizer was ever loaded.
FILES = ("config.json", "tokenizer_config.json", "tokenizer.json")


def only_cached(path: str, revision: str | None = None) -> bool:
    """True if a hub id must be taken from the cache, because the hub does not answer.

    Args:
        path: folder or hub id.
        revision: branch, tag or commit on the hub.

    Raises:
        ConnectionError: if the hub does not answer and the cache knows nothing of this id.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if Path(path).is_dir():
        return False
    try:
        cached = any(isinstance(try_to_load_from_cache(path, name, revision=revision), str) for name in FILES)
        get_hf_file_metadata(hf_hub_url(path, FILES[0], revision=revision))
    except (HfHubHTTPError, HFValidationError):  # an answer: whoever loads says what is wrong
        return False
    except Exception as error:  # of whichever HTTP library is below
        if not cached:
            raise ConnectionError(
                f"it is no folder here and not in the cache, and the Hugging Face hub does not answer: {reason(error)}"
            ) from error
        return True
    return False
