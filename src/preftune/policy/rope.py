"""RoPE scaling as configured, written into a model's config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RopeParameters

from preftune.errors import PreftuneError
from preftune.policy.reasons import reason
from preftune.yaml_tree import nearest


def scale_rope(settings: Any, scaling: Mapping[str, Any]) -> None:
    """Write RoPE scaling into a model's config; transformers itself passes over what it does not know.

    Args:
        settings: config of the text model; changed in place.
        scaling: fields of RoPE, rope_type among them.

    Raises:
        PreftuneError: if the model has no RoPE that could be scaled so.
    """
    rope = getattr(settings, "rope_parameters", None)
    if not rope or settings.nested_rope_parameter_keys(rope):
        raise PreftuneError(
            f"model.rope_scaling needs a model with one RoPE for all layers, but {settings.model_type} has "
            f"{'one for each type of layer' if rope else 'none'}: leave it out"
        )
    if scaling.get("rope_type") not in ROPE_INIT_FUNCTIONS:
        raise PreftuneError(
            f"model.rope_scaling.rope_type is {scaling.get('rope_type')!r}, "
            f"expected one of {', '.join(ROPE_INIT_FUNCTIONS)}"
        )
    for key in scaling:
        if key not in RopeParameters.__annotations__:
            raise PreftuneError(
                f"unknown key model.rope_scaling.{key}{nearest(key, list(RopeParameters.__annotations__))}"
            )
    factor = scaling.get("factor", 1)
    if not (isinstance(factor, int | float) and factor >= 1):
        raise PreftuneError(f"model.rope_scaling.factor must be a number of at least 1, got {factor!r}")
    settings.rope_parameters = {**rope, **scaling}
    try:
        settings.standardize_rope_params()
        settings.validate_rope()
    except (KeyError, ValueError) as error:
        raise PreftuneError(f"model.rope_scaling does not work: {reason(error)}") from error
