"""`python -m newllm` is the same as `newllm`."""

import sys

from newllm.cli import main

sys.exit(main())
