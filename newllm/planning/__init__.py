"""`newllm plan`: how long a training will take, whether it fits, and what it costs."""
