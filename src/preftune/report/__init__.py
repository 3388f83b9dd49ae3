"""Run folder -> figures and one self-contained HTML page."""
