"""What the playbook adds around a stage, and what following one costs the host and the link.

The stages are a few lines of shell that say when they began and ended, so that all the rest is the
playbook's, and none of it Python's imports of a training. Seconds, since that is what is claimed:
on a busy machine they are longer.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sshd_host
from tests.benchmarks.counting_proxy import CountingProxy
from tests.benchmarks.rows import WORK, BenchError, Row, say
from tests.integration.conftest import GpuHost
from tests.integration.sites import COMMAND, STAGES, Playbooks, Site

RUNS = 4.0  # seconds that a stage runs: the polls have reached their longest pause by then
FOLLOWED = 20.0  # seconds for which following is looked at
LINES = 2000
TIMED = f"date +%s.%N >> ../../times\n{COMMAND}\nsleep {RUNS}\ndate +%s.%N >> ../../times"
# A log of known size, while one is looked at.
WRITES = f"""
{COMMAND}
touch ../../speaks
sleep {FOLLOWED / 2}
seq -f "%064.0f" {LINES}
sleep {FOLLOWED}
"""
AROUND = 2.0
PROCESSOR = 1.0
LOG = 1.5


def measure(repeats: int) -> list[Row]:
    """Both."""
    began, between = [], []
    for turn in range(max(1, repeats // 3)):
        starts, gaps = _around(turn)
        began += starts
        between += gaps
    say(
        f"around_stages: seconds from the title to the stage's own first line: "
        f"median {statistics.median(began):.2f}, most {max(began):.2f}; from its last line to the "
        f"next one's first: median {statistics.median(between):.2f}, most {max(between):.2f}"
    )
    percent, moved = _following()
    return [
        Row("s from a step's title to the stage's first line", statistics.median(began), AROUND),
        Row(
            "s from a stage's last line to the next one's first",
            statistics.median(between),
            AROUND,
        ),
        Row("following: percent of one of the host's cores", percent, PROCESSOR),
        Row("following with -v: bytes on the wire / bytes of the log", moved, LOG),
    ]


@contextmanager
def _site(
    name: str, command: str, through_proxy: bool = False
) -> Iterator[tuple[Site, int, object]]:
    """A site behind a server of its own; the server's process, and the proxy in front of it."""
    folder = WORK / name
    for part in ("ansible", "site"):
        (folder / part).mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="rt-") as control:
        server = sshd_host.start(folder / "ssh")
        proxy = CountingProxy((server.address, server.port))
        try:
            settings: dict[str, object] = {"stage_command": ["sh", "-c", command]}
            if through_proxy:
                settings |= {
                    "ansible_port": proxy.port,
                    "ansible_ssh_common_args": f"-F /dev/null"
                    f" -o UserKnownHostsFile={server.known_hosts}"
                    f" -o HostKeyAlias=[{server.address}]:{server.port}"
                    " -o IdentitiesOnly=yes -o IdentityAgent=none",
                }
            host = GpuHost(server, folder)
            playbooks = Playbooks(folder / "ansible", Path(control))
            yield (
                Site(playbooks, host.inventory, folder / "site", settings).make(),
                server.pid,
                proxy,
            )
        finally:
            proxy.close()
            sshd_host.stop(folder / "ssh")


def _around(turn: int) -> tuple[list[float], list[float]]:
    """Seconds before each stage, and between each two."""
    with _site(f"around{turn}", TIMED) as (site, _, _):
        process = site.start()
        titles: list[float] = []
        shown = ""
        for line in process.stdout or ():
            shown += line
            if line.startswith("- Train "):
                titles.append(time.time())
        if process.wait() or len(titles) != len(STAGES):
            raise BenchError(f"the run did not end well:\n{shown}")
        times = [float(word) for word in (site.folder / "times").read_text().split()]
    starts, ends = times[::2], times[1::2]
    before = [start - title for start, title in zip(starts, titles, strict=True)]
    return before, [start - end for start, end in zip(starts[1:], ends, strict=False)]


def _following() -> tuple[float, float]:
    """Percent of a core on the host, and bytes on the wire for each byte of the log."""
    with _site("following", WRITES, through_proxy=True) as (site, server, proxy):
        assert isinstance(proxy, CountingProxy)
        process = site.start("-v", "--tags", "sample")
        try:
            deadline = time.monotonic() + 60
            while not (site.folder / "speaks").exists():
                if time.monotonic() > deadline or process.poll() is not None:
                    raise BenchError("the stage did not start")
                time.sleep(0.05)
            time.sleep(2)
            used, moved, began = _spent(server), proxy.count(), time.monotonic()
            time.sleep(FOLLOWED / 4)
            idle = (proxy.count() - moved) / (time.monotonic() - began)
            time.sleep(FOLLOWED * 3 / 4)
            seconds = time.monotonic() - began
            used, moved = _spent(server) - used, proxy.count() - moved
        finally:
            os.killpg(process.pid, 9)
            process.communicate()
            subprocess.run(
                site.playbooks.command(
                    *site.arguments("-e", "stop_grace=1"), playbook="playbooks/stop.yml"
                ),
                env=site.playbooks.environment(),
                capture_output=True,
                check=False,
            )
    say(
        f"around_stages: {1000 * used:.0f} ms of the host's processor in {seconds:.0f} s of "
        f"following; {idle:.0f} bytes/s on the wire while the log stands still"
    )
    return 100 * used / seconds, (moved - idle * seconds) / (65 * LINES)


def _spent(server: int) -> float:
    """Seconds of processor time of a server's sessions, and of what they ran, so far."""
    ticks = 0
    waiting = [pid for pid, _ in sshd_host.children(server)]
    while waiting:
        pid = waiting.pop()
        waiting += [child for child, _ in sshd_host.children(pid)]
        try:
            fields = (
                Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            )
        except OSError:
            continue
        ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")
