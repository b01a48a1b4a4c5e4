"""What ssh says when a host can't be reached, as a sentence and a hint."""

from __future__ import annotations

import re
import subprocess

_UNREACHABLE = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key for .* has changed",
        "the host's key is not the one that is pinned for it.",
        "If the machine was rented anew and your provider shows the same fingerprint, remove the "
        "old line from known_hosts and pin the new key; if not, somebody may be in between.",
    ),
    (
        r"Host key verification failed|No \S+ host key is known",
        "the host's key is not known yet, so it can't be told from somebody else's.",
        "Only if your provider shows the same fingerprint, pin the key: what ssh-keyscan -p PORT "
        "HOST prints goes into known_hosts (inventory/example/README.md has it step by step).",
    ),
    (
        r"Permission denied",
        "the host refuses the login.",
        "Check the user and the key (ansible_user, ansible_ssh_private_key_file).",
    ),
    (
        r"Could not resolve hostname (\S+):",
        "there is no host of that name.",
        "Check ansible_host in the inventory, or REMOTE_HOST.",
    ),
    (
        r"Connection refused",
        "nothing listens for SSH at that address and port.",
        "Check ansible_host and ansible_port, and whether the machine is running.",
    ),
    (
        r"timed out|No route to host|Network is unreachable",
        "the host doesn't answer.",
        "Check the address, your network, and whether the machine is running.",
    ),
)


def unreachable(message: str, host: str) -> tuple[str, str]:
    """A sentence and a hint for what ssh said."""
    for pattern, sentence, hint in _UNREACHABLE:
        if re.search(pattern, message):
            return f"{host} can't be reached: {sentence}", hint
    last = [line for line in message.strip().splitlines() if line.strip()][-1:] or ["no word"]
    return f"{host} can't be reached: {last[0]}", "Try ssh by hand; -vvv shows what is tried."


def fingerprints(message: str) -> str:
    """The host keys that a host shows now, as ssh said them or the host itself says when asked.

    ssh tells the fingerprint of a key that has changed, and none of one that it doesn't know.
    Empty where nobody says.
    """
    changed = re.search(r"fingerprint for the (\S+) key sent by .* is\s+(SHA256:[\w+/=]+)", message)
    if changed:
        return f"{changed[1]} {changed[2]}"
    unknown = re.search(r"host key is known for (?:\[([^\]]+)\]:(\d+)|([^\s\[-]\S*)) and", message)
    if not unknown:
        return ""
    scan = ["ssh-keyscan", "-T", "5", "-p", unknown[2] or "22", unknown[1] or unknown[3]]
    try:
        keys = subprocess.run(scan, capture_output=True, timeout=20, check=True).stdout
        read = ["ssh-keygen", "-l", "-f", "-"]
        said = subprocess.run(read, input=keys, capture_output=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    lines = [line.split() for line in said.decode("utf-8", "replace").splitlines()]
    return ", ".join(sorted(f"{words[-1].strip('()')} {words[1]}" for words in lines))
