"""Sweeps: one run for each setting, one pass of the reference for all, and what each setting gains for its KL."""
