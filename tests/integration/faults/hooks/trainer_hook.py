"""Loaded by a ``.pth`` file in every process of a Python: acts in ``python -m training`` alone."""

import os
import sys
from pathlib import Path

if "training" in getattr(sys, "orig_argv", []):
    # So small a model is slower on two threads, and far slower beside anything else.
    os.environ["OMP_THREAD_LIMIT"] = "1"
    import trainer_faults

    trainer_faults.install(Path(sys.prefix))
