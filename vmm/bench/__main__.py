"""`python -m vmm.bench`: the same as the command vllmd-hypervisor-bench."""

import sys

from vmm.bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
