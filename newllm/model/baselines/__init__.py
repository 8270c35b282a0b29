"""The architectures that `ContextLM` is measured against, each beside its kernels."""
