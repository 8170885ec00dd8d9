"""`python -m vmm` is the command `vllmd-hypervisor`, in Python whatever the installed one is."""

from __future__ import annotations

import sys

from vmm.light import bundle

bundle.use()  # before anything else of ours is imported
from vmm.command.cli import main  # noqa: E402

sys.exit(main())
