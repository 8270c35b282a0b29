"""Writing text with a model: one decoder, a sampler, and the engine that serves many at once."""
