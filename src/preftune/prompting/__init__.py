"""Prompt optimisers: models that learn from preferences to rewrite a prompt for any model that will answer it."""
