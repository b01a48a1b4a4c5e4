"""A million names: the memory that it takes to read their manifest, to verify what it lists, to
offer them, to take the offer in, and to apply it.

The files are there: a thousand of them, each under a thousand names in a folder of its own.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

from remote_train.manifest import MODERN
from tests.benchmarks.rows import PROJECT, WORK, BenchError, Row, say

FOLDERS = 1000
NAMES = 1000
MOST = 300.0  # MB

PARSE = """
import sys
sys.path.insert(0, sys.argv[2])
from remote_train.manifest import read_manifest
listed = read_manifest(sys.argv[1] + "/" + sys.argv[3])
print(len(listed.lines), len(listed.problems.items))
"""
VERIFY = """
import sys
sys.path.insert(0, sys.argv[2])
from remote_train.manifest import verify
result = verify(sys.argv[1])
print(result.verified, result.problem_count)
"""
MAKE = """
import sys
sys.path.insert(0, sys.argv[2])
from remote_train.offer import Offer
with open(sys.argv[1] + "/" + sys.argv[3]) as listed:
    offer = Offer((line[66:-1], line[:64], False) for line in listed)
packed = offer.packed()
with open(sys.argv[1] + ".offer", "w") as stream:
    for start in range(0, len(packed), 1000000):  # without a copy of all of it
        stream.write(packed[start : start + 1000000])
print(len(offer), 0)
"""
UNPACK = """
import sys
sys.path.insert(0, sys.argv[2])
from remote_train.offer import unpack
offer = unpack(open(sys.argv[1] + ".offer").read())
print(len(offer), 0)
"""
# As the host does it: every file is looked at, here to find that none differs.
APPLY = """
import sys
sys.path.insert(0, sys.argv[2])
from remote_train import bundle_apply, offer
from remote_train.bundle import build_delta
root = sys.argv[1]
build_delta(root, [], {}, root + ".delta")
offered = offer.unpack(open(root + ".offer").read())
with open(root + ".delta", "rb") as stream:
    delivery = bundle_apply.Delivery(stream.read(), offered)
state = root + "/outputs/training_sync"
done = bundle_apply.apply("", root, state, None, check=True, delivery=delivery)
print(done.unchanged, len(done.written))
"""
# The kernel's own high-water marks. Of this process it is taken from where the program before it
# doesn't count; a process that was forked counts what it shares as well.
PEAK = """
from resource import RUSAGE_CHILDREN, getrusage
own = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(own.split()[1], getrusage(RUSAGE_CHILDREN).ru_maxrss)
"""


def measure(_repeats: int) -> list[Row]:
    """Each in a fresh process; memory doesn't scatter, so once is enough."""
    root = WORK / "lines"
    say(f"many_lines: writing {FOLDERS * NAMES:,} names")
    _write(root)
    rows = []
    for what, script, most in (
        ("read", PARSE, MOST),
        ("verify", VERIFY, MOST),
        ("made and packed as an offer", MAKE, MOST),
        ("unpacked from an offer", UNPACK, MOST),
        ("applied in check mode", APPLY, None),
    ):
        own, largest, together, taken = _peak(root, script)
        say(
            f"many_lines: {what}: {taken:.1f} s; resident at most {own:.0f} MB in the process"
            f" itself, {largest:.0f} MB in the largest that it forks, {together:.0f} MB in all"
            " together (shared pages once)"
        )
        # Of one process alone the kernel's own mark counts: a look at it may see what moves twice.
        resident = max(own, largest, together) if largest else own
        rows.append(Row(f"1,000,000 manifest lines, {what}: resident MB", resident, most))
    return rows


def _peak(root: Path, script: str) -> tuple[float, float, float, float]:
    """MB of the process, of the largest child, and of all together; seconds."""
    start = time.perf_counter()
    command = [sys.executable, "-c", script + PEAK, str(root)]
    command += [str(PROJECT / "plugins" / "module_utils"), MODERN]
    together = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            together = max(together, _proportional(process.pid))
            time.sleep(0.1)
        said = process.stdout.read() if process.stdout else ""
    if said.split()[:2] != [str(FOLDERS * NAMES), "0"]:
        raise BenchError(f"a million lines gave {said!r}")
    own, largest = (int(number) * 1024 / 1e6 for number in said.split()[2:])
    return own, largest, together * 1024 / 1e6, time.perf_counter() - start


def _proportional(pid: int) -> int:
    """Resident KiB of a process and of those that it forked; what n of them share counts 1/n."""
    total = 0
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as stream:
            pids = [pid, *map(int, stream.read().split())]
        for one in pids:
            with open(f"/proc/{one}/smaps_rollup", encoding="ascii") as stream:
                total += sum(int(line.split()[1]) for line in stream if line.startswith("Pss:"))
    except (OSError, ValueError):
        pass  # one of them is gone: the next look counts
    return total


def _write(root: Path) -> None:
    root.mkdir()
    with open(root / MODERN, "w", encoding="ascii") as listed:
        for number in range(FOLDERS):
            folder = f"data/training/processed/part{number:03}"
            (root / folder).mkdir(parents=True)
            content = b"%d" % number
            digest = hashlib.sha256(content).hexdigest()
            names = [f"{folder}/sample{name:03}.json" for name in range(NAMES)]
            (root / names[0]).write_bytes(content)
            for name in names[1:]:
                os.link(root / names[0], root / name)
            listed.writelines(f"{digest}  {name}\n" for name in names)
