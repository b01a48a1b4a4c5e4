"""Loaded by a ``.pth`` file in every process of a Python: acts in ``python -m training`` alone."""

import sys
from pathlib import Path

if "training" in getattr(sys, "orig_argv", []):
    import trainer_faults

    trainer_faults.install(Path(sys.prefix))
