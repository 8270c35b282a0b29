"""An HTTP server: OpenAI's interface, and conversations kept as their state."""
