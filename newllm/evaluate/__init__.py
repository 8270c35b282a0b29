"""What a model is worth: metrics, and the n-gram baseline beside them."""
