"""Which architectures of the installed transformers are exact on prompt trees, tried in miniature.

    PYTHONPATH=src python scripts/tree_safe.py            # all decoders; half a minute
    PYTHONPATH=src python scripts/tree_safe.py llama phi3 # these

Each is built with random weights and windows of 8 tokens, and run over prompt trees and over one plain forward per
response; the largest differences of log-probs (nats) and gradients (share of the largest one) are printed. What is
exact here may join `TREE_SAFE` in src/preftune/policy/layout.py, unless its usual configuration has layers that the
miniature left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def main() -> int:
    """Try the types named on the command line, or all."""
    import miniatures
    from transformers import logging
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    from preftune.policy.layout import TREE_SAFE

    parser = argparse.ArgumentParser(description="Which architectures are exact on prompt trees, tried in miniature.")
    parser.add_argument("types", nargs="*", help="model types as transformers names them (default: all)")
    named = parser.parse_args().types
    logging.set_verbosity_error()
    exact, wrong = [], []
    for model_type in named or sorted(KNOWN):
        verdict, reason = miniatures.verdict(model_type)
        print(f"{model_type:28} {verdict:9} {reason}", flush=True)
        if verdict == "exact":
            exact.append(model_type)
        elif model_type in TREE_SAFE:
            wrong.append(model_type)
    print(f"\n{len(exact)} exact, of which not in TREE_SAFE: {', '.join(sorted(set(exact) - TREE_SAFE)) or 'none'}")
    if wrong:
        print(f"in TREE_SAFE without being exact: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
