"""What must be refused: every rule, by its meaning, with a case and the words of its message."""

from tests.unit.hostile_archives import (
    ARCHIVE_RULES,
    MANIFEST_RULES,
    MEMBER_RULES,
)
from tests.unit.hostile_archives import SPELLINGS as ARCHIVE_SPELLINGS
from tests.unit.hostile_deltas import DELTA_RULES, DELTA_SPELLINGS
from tests.unit.hostile_hosts import (
    BROUGHT_RULES,
    ROLLBACK_RULES,
    TARGET_RULES,
    WORK_RULES,
)
from tests.unit.hostile_signatures import SIGNATURE_RULES, SIGNATURE_SPELLINGS

__all__ = ["RULES", "SPELLINGS"]

RULES = {
    **MANIFEST_RULES,
    **ARCHIVE_RULES,
    **MEMBER_RULES,
    **BROUGHT_RULES,
    **TARGET_RULES,
    **WORK_RULES,
    **ROLLBACK_RULES,
    **SIGNATURE_RULES,
    **DELTA_RULES,
}

SPELLINGS = {**ARCHIVE_SPELLINGS, **SIGNATURE_SPELLINGS, **DELTA_SPELLINGS}
