"""The built-in world: a tiny base model, a true reward, and a sampler of preferences."""
