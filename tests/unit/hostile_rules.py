"""What must be refused: every rule, by its meaning, with a case and the words of its message."""

from tests.unit.hostile_archives import (
    ARCHIVE_RULES,
    MANIFEST_RULES,
    MEMBER_RULES,
    SPELLINGS,
)
from tests.unit.hostile_hosts import (
    BROUGHT_RULES,
    ROLLBACK_RULES,
    TARGET_RULES,
    WORK_RULES,
)

__all__ = ["RULES", "SPELLINGS"]

RULES = {
    **MANIFEST_RULES,
    **ARCHIVE_RULES,
    **MEMBER_RULES,
    **BROUGHT_RULES,
    **TARGET_RULES,
    **WORK_RULES,
    **ROLLBACK_RULES,
}
