"""Ask the training's own Python whether it can do this training: the active part of the gate."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / d) for d in ("plugin_utils", "module_utils")]

from controller.gate import GateAction


class ActionModule(GateAction):
    """``active_gate:`` with the module's own arguments."""

    module = "active_gate"
    doing = "the training's Python looks at torch, model and chats"
