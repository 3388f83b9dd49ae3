"""Experiments of the papers, run again by one command each, with the limits that must hold."""
