"""The frontier between reward and KL: which method comes how near to the exact optimum, measured."""
