"""The published command of this level: `newllm train code_alpaca` in the word-1000 protocol."""

import sys

from _launch import launch

sys.exit(launch("code_alpaca"))
