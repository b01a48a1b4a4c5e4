"""Every check of both gates, the passive and the active one: what can be silenced by name."""

from __future__ import annotations

from . import active_gate, gate

NAMES = tuple(check.name for check in gate.CHECKS) + tuple(c.name for c in active_gate.CHECKS)
"""Their names, of which no two are alike."""
