"""`ContextLM`: the model, its definition in plain torch, its kernels and its one-token step."""
