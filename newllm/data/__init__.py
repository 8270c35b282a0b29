"""From rows to batches: sources, conversations, tokenizers, rendering, shards, packing, loading."""
