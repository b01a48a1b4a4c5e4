"""Ask the host whether it is fit for a training: the passive part of the gate."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / d) for d in ("plugin_utils", "module_utils")]

from controller.gate import GateAction


class ActionModule(GateAction):
    """``gpu_probe:`` with the module's own arguments."""

    module = "gpu_probe"
    doing = "the host looks at itself"
    tells_time = True
