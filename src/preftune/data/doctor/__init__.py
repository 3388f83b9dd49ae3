"""The data doctor: what is wrong with preferences, before a step is spent on them."""
