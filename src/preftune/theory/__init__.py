"""Exact answers to hold objectives, trainers and data against: they need no model."""
