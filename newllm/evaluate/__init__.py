"""What a model is worth: metrics, and the n-gram floor beside them."""
