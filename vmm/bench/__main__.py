"""`python -m vmm.bench`: the same as the command vllmd-hypervisor-bench."""

import sys

from vmm.bench.cli import main

sys.exit(main())
