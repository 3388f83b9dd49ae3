"""FIPO in small: optimisers that learn from what generators answer, tried on a generator that they never saw."""
