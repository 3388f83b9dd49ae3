"""A small OpenAI-compatible server for one model: `preftune serve`."""
