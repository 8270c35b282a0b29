"""Taking a model elsewhere: a Hugging Face folder and back, ONNX, and lm-eval."""
