"""The ways to verify a folder: what the module verify_manifest does, without and with Ansible."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.benchmarks.rows import BIN, PROJECT, BenchError, seconds

MODULE = "verify_manifest"


VERIFY = """
import sys
sys.path.insert(0, sys.argv[2])
from remote_train.manifest import verify
result = verify(sys.argv[1])
print(f'"verified": {result.verified}')
sys.exit(result.problem_count > 0)
"""


def plain(root: Path) -> list[str]:
    """An interpreter that starts, verifies ``root`` as the module does, and says the count."""
    return [sys.executable, "-c", VERIFY, str(root), str(PROJECT / "plugins" / "module_utils")]


def sent(root: Path, work: Path) -> list[str]:
    """The very file that Ansible sends to a host to verify ``root``, kept.

    It starts an interpreter, compiles the module and all of Ansible that it needs from an archive
    within itself, and prints the result as JSON.
    """
    kept = work / "sent"
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
        "ANSIBLE_KEEP_REMOTE_FILES": "1",
        "ANSIBLE_REMOTE_TMP": str(kept),
    }
    ask = [BIN / "ansible", "localhost", "-i", "localhost,", "-c", "local"]
    python = f"ansible_python_interpreter={sys.executable}"
    seconds([*ask, "-e", python, "-m", MODULE, "-a", f"root={root}"], env=environment)
    found = list(kept.glob(f"*/AnsiballZ_{MODULE}.py"))
    if len(found) != 1:
        raise BenchError(f"Ansible left {len(found)} modules in {kept}")
    return [sys.executable, str(found[0])]
