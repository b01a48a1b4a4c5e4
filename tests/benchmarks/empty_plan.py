"""A whole run that finds nothing to do, beside `ansible -m ping` on the same host."""

from __future__ import annotations

import os
import statistics

import demo
import sshd_host
from tests.benchmarks.rows import BIN, PROJECT, BenchError, Row, in_turns, ratio, say, seconds

INVENTORY = PROJECT / "inventory" / "demo"
LIMIT = 4.0


def measure(repeats: int) -> list[Row]:
    """Run the demo first, so that there is nothing left to do."""
    say("empty_plan: the demo first, so that there is nothing left to do")
    if demo.main([]):
        raise BenchError("the demo failed")
    environment = {k: v for k, v in os.environ.items() if k not in demo.ELSEWHERE}
    environment["ANSIBLE_CONFIG"] = str(PROJECT / "ansible.cfg")
    ping = [BIN / "ansible", "-i", INVENTORY, "gpu_hosts", "-m", "ping"]
    run = [BIN / "ansible-playbook", "-i", INVENTORY, "train_all.yml"]
    sshd_host.start(demo.BUILD / "ssh")
    try:
        # The first one opens the connection that both then share.
        seconds(ping, env=environment, must_say="pong")
        taken = in_turns(
            {
                "ping": lambda: seconds(ping, env=environment, must_say="pong"),
                "run": lambda: seconds(run, env=environment, must_say="changed=0 "),
            },
            repeats,
        )
    finally:
        sshd_host.stop(demo.BUILD / "ssh")
    pinged, played = (statistics.median(taken[side]) for side in ("ping", "run"))
    say(f"empty_plan: medians of {repeats}: ping {pinged:.2f} s, playbook {played:.2f} s")
    return [
        Row(
            "nothing to do: whole playbook / ansible -m ping",
            ratio(taken["run"], taken["ping"]),
            LIMIT,
        )
    ]
