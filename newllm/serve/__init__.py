"""An HTTP server for one model: OpenAI's interface, and conversations kept as their state."""
