"""`make bench`: what the README claims, measured here and now, each as a ratio within one run.

    python tests/benchmarks/run.py [REPEATS]

Seconds differ from machine to machine and from minute to minute; what is compared is measured
in turns, so that both sides meet the same minute.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT / "tools"), str(PROJECT / "plugins" / "module_utils")]

import demo  # noqa: E402 - after the path is set
import sshd_host  # noqa: E402

INVENTORY = str(PROJECT / "inventory" / "demo")
BIN = Path(sys.executable).parent


def seconds(command: list[str], must_say: str) -> float:
    """The wall-clock seconds of a command that must end well and say what it should."""
    environment = {k: v for k, v in os.environ.items() if k not in demo.ELSEWHERE}
    environment["ANSIBLE_CONFIG"] = str(PROJECT / "ansible.cfg")
    start = time.perf_counter()
    done = subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
    )
    taken = time.perf_counter() - start
    if done.returncode or must_say not in done.stdout:
        sys.exit(f"bench: {' '.join(command)} did not do what is measured:\n{done.stdout}")
    return taken


def empty_plan(repeats: int) -> tuple[float, float, float]:
    """A whole run that finds nothing to do, beside `ansible -m ping` on the same host.

    :returns: the median of the ratios, and the medians of both in seconds.
    """
    ping = [str(BIN / "ansible"), "-i", INVENTORY, "gpu_hosts", "-m", "ping"]
    run = [str(BIN / "ansible-playbook"), "-i", INVENTORY, "train_all.yml"]
    seconds(ping, "pong")  # the first one opens the connection that both then share
    pairs = [(seconds(ping, "pong"), seconds(run, "changed=0 ")) for _ in range(repeats)]
    ratios = [playbook / pinged for pinged, playbook in pairs]
    return (
        statistics.median(ratios),
        statistics.median(pinged for pinged, _ in pairs),
        statistics.median(playbook for _, playbook in pairs),
    )


def main(arguments: list[str]) -> int:
    """Exit status 1 where a claim doesn't hold."""
    repeats = int(arguments[0]) if arguments else 7
    print("bench: the demo first, so that there is nothing left to do", flush=True)
    if demo.main([]):
        return 1
    sshd_host.start(demo.BUILD / "ssh")
    try:
        ratio, pinged, playbook = empty_plan(repeats)
    finally:
        sshd_host.stop(demo.BUILD / "ssh")
    holds = ratio <= 4
    print(f"\n{'claim':<44} {'measured':>9} {'at most':>8}  holds")
    print(f"{'empty plan, whole playbook / ansible -m ping':<44} {ratio:>9.2f} {4:>8}  {holds}")
    print(f"(medians of {repeats}: ping {pinged:.2f} s, playbook {playbook:.2f} s)")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
