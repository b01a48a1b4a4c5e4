"""Many small files: what costs is opening them, and being an interpreter."""

from __future__ import annotations

import os
import statistics
import subprocess
from pathlib import Path

from remote_train.manifest import MODERN
from tests.benchmarks import verify_command
from tests.benchmarks.rows import WORK, Row, in_turns, ratio, say, seconds

FOLDERS = 200
IN_EACH = 100
SIZE = 4096  # bytes
MOST = 1.2


def measure(repeats: int) -> list[Row]:
    """Verify 20,000 files of 4 KiB, in turns with `sha256sum --quiet -c`."""
    root = WORK / "small"
    names = list(_write(root))
    with open(root / MODERN, "wb") as listed:
        for start in range(0, len(names), 1000):  # the kernel takes so many arguments, not more
            command = ["sha256sum", *names[start : start + 1000]]
            subprocess.run(command, cwd=root, check=True, stdout=listed)
    plain, sent = verify_command.plain(root), verify_command.sent(root, WORK)
    check = ["sha256sum", "--quiet", "-c", MODERN]
    must_say = f'"verified": {len(names)}'
    taken = in_turns(
        {
            "sha256sum": lambda: seconds(check, cwd=root),
            "plain": lambda: seconds(plain, must_say=must_say),
            "sent": lambda: seconds(sent, must_say=must_say),
        },
        3 * repeats,  # each is over in a moment
    )
    theirs, ours, whole = (statistics.median(taken[side]) for side in taken)
    say(
        f"small_files: {len(names):,} files: sha256sum {theirs:.3f} s, verify with the start of its"
        f" interpreter {ours:.3f} s, the module as Ansible sends it {whole:.3f} s"
    )
    return [
        Row(
            "20,000 files of 4 KiB: verify, interpreter start included / sha256sum -c",
            ratio(taken["plain"], taken["sha256sum"]),
            MOST,
        ),
        Row("  the whole module as Ansible sends it", ratio(taken["sent"], taken["sha256sum"])),
    ]


def _write(root: Path) -> list[str]:
    names = []
    for folder in range(FOLDERS):
        (root / f"part{folder:03}").mkdir(parents=True)
        for number in range(IN_EACH):
            name = f"part{folder:03}/sample{number:03}.json"
            (root / name).write_bytes(os.urandom(SIZE))
            names.append(name)
    return names
