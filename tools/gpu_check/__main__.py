"""`python -m tools.gpu_check`."""

import sys

from tools.gpu_check.runner import main

sys.exit(main())
