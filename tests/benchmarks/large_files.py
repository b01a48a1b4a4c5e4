"""Large files: as fast as all cores hash, or nearly.

What the cores can do is what `openssl speed` says of them: SHA-256 over one buffer, again and
again, in as many processes as there are cores. Its blocks have
16 KiB, its own largest: there the cost of a call is gone, and the block still lies in the nearest
caches, where a file's bytes never do. It counts wall-clock seconds (`-elapsed`), as the other side
does.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
from pathlib import Path

from remote_train.hashing import default_workers
from remote_train.manifest import MODERN
from tests.benchmarks import verify_command
from tests.benchmarks.rows import WORK, BenchError, Row, in_turns, ratio, say, seconds

FILES = 8
SIZE = 512 * 1024 * 1024  # bytes of each: 4 GiB in all
BLOCK = 16 * 1024  # bytes
LEAST = 0.8
_RATE = re.compile(r"\+F:\d+:sha256:([0-9.]+)$", re.MULTILINE)


def measure(repeats: int) -> list[Row]:
    """Verify 4 GiB that lie in the page cache, in turns with openssl; sha256sum once or twice."""
    total = FILES * SIZE
    _need_room(total)
    root = WORK / "large"
    say(f"large_files: writing {total / 2**30:.0f} GiB in {FILES} files")
    _write(root)
    with open(root / MODERN, "wb") as listed:
        names = sorted(path.name for path in root.glob("part*"))
        subprocess.run(["sha256sum", *names], cwd=root, check=True, stdout=listed)
    plain, sent = verify_command.plain(root), verify_command.sent(root, WORK)
    must_say = f'"verified": {FILES}'
    check = ["sha256sum", "--quiet", "-c", MODERN]
    workers = default_workers()
    taken = in_turns(
        {
            "openssl": lambda: _openssl_rate(workers),
            "plain": lambda: total / seconds(plain, must_say=must_say),
            "sent": lambda: total / seconds(sent, must_say=must_say),
        },
        repeats,
    )
    theirs = [total / seconds(check, cwd=root) for _turn in range(min(repeats, 2))]
    openssl, ours, whole = (statistics.median(rates) / 1e9 for rates in taken.values())
    summed = statistics.median(theirs) / 1e9
    say(
        f"large_files: GB/s: openssl on {workers} cores {openssl:.2f}, verify with the start of its"
        f" interpreter {ours:.2f}, the module as Ansible sends it {whole:.2f}, sha256sum -c"
        f" {summed:.2f}"
    )
    return [
        Row(
            "4 GB in 8 files: verify, interpreter start included / openssl, all cores",
            ratio(taken["plain"], taken["openssl"]),
            LEAST,
            at_least=True,
        ),
        Row("  the whole module as Ansible sends it", ratio(taken["sent"], taken["openssl"])),
        Row("  verify / sha256sum -c", ours / summed),
    ]


def _openssl_rate(workers: int) -> float:
    """Bytes a second."""
    command = ["openssl", "speed", "-mr", "-elapsed", "-seconds", "3", "-evp", "sha256"]
    command += ["-multi", str(workers), "-bytes", str(BLOCK)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # Each process hands in its own line; the last one adds them up.
    rates = _RATE.findall(done.stdout)
    if not rates:
        raise BenchError(f"openssl speed said nothing of a rate:\n{done.stdout}")
    return float(rates[-1])


def _need_room(total: int) -> None:
    """:raises BenchError: where the files don't fit on the disk and into the page cache."""
    free = shutil.disk_usage(WORK).free
    with open("/proc/meminfo", encoding="ascii") as stream:
        fields = dict(line.split(":") for line in stream)
    memory = int(fields["MemAvailable"].split()[0]) * 1024
    for what, there in (("disk", free), ("memory", memory)):
        if there < total * 1.25:
            raise BenchError(
                f"{total / 2**30:.0f} GiB don't fit: {there / 2**30:.1f} GiB of {what} are free"
            )


def _write(root: Path) -> None:
    """Files whose bytes no compressing file system makes fewer of."""
    root.mkdir()
    chunk = os.urandom(16 * 1024 * 1024)
    for number in range(FILES):
        with open(root / f"part{number}", "wb") as stream:
            for turn in range(SIZE // len(chunk)):
                stream.write(b"%16d" % (number * 1000 + turn))
                stream.write(chunk[16:])
