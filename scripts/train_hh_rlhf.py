"""The published command of this level: `newllm train hh_rlhf` in the word-1000 protocol."""

import sys

from _launch import launch

sys.exit(launch("hh_rlhf"))
