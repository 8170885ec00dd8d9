"""`python -m vmm` is the command `vllmd-hypervisor`."""

from __future__ import annotations

import sys

from vmm.command.cli import main

sys.exit(main())
