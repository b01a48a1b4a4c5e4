"""One command on the host that goes on answering, read from as it comes.

Ansible hands out what a command has printed when that has ended. So it is run beside Ansible, but
only over the connection that Ansible has made and keeps (ssh's ControlMaster): this ssh is given
that one's socket and no other way to the host. It can't log in anywhere, asks for no password, and
has no host key to judge.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import subprocess
import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.utils.path import unfrackpath

from . import follow
from .link import Link

SILENT_AFTER = 20.0
"""Seconds without an answer after which it is given up; ssh notices a dead link before that."""

LARGEST = 8 * 1024 * 1024
"""Bytes that are no answer, after which no more are read."""

TRIES = 3
"""How often in a row it may end without a single answer, before it is left to polls."""


class Watch:
    """The command that stays, if there can be one. It ends with the ``with`` block.

    :param link: says what a break is, and has it mended.
    :param connection: Ansible's own to the host.
    """

    def __init__(self, link: Link, connection: Any) -> None:
        self._link = link
        self._connection = connection
        self._process: subprocess.Popen[bytes] | None = None
        self._printed = b""
        self._heard = False
        self._failed = 0

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    @property
    def open(self) -> bool:
        """Whether the command that answered last is still there to answer again."""
        return self._process is not None

    def answer(self, command: str) -> str | None:
        """The next answer, over cuts; None where there is none to be had like this now.

        :param command: is started where none is there.
        """
        found: bytes | None = self._link(lambda: self._next(command))
        return None if found is None else found.decode("utf-8", "surrogateescape")

    def _next(self, command: str) -> bytes | None:
        if self._process is None:
            words = over_shared(self._connection) if self._failed < TRIES else None
            if words is None:
                return None
            self._start([*words, f"/bin/sh -c {shlex.quote(command)}"])
        try:
            found = self._read()
        except AnsibleConnectionFailure:
            self._close()
            raise
        if found is None:
            self._failed += not self._heard
            self._close()
        else:
            self._heard, self._failed = True, 0
        return found

    def _start(self, words: list[str]) -> None:
        self._process = subprocess.Popen(
            [os.fsencode(word) for word in words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        self._printed, self._heard = b"", False

    def _read(self) -> bytes | None:
        """The next answer; None where the command has ended, or speaks of something else."""
        deadline = time.monotonic() + SILENT_AFTER
        process = self._process
        if process is None or process.stdout is None:
            return None
        while True:
            found = follow.first_answer(self._printed)
            if found is not None:
                self._printed = found[1]
                return found[0]
            left = deadline - time.monotonic()
            if left <= 0 or len(self._printed) > LARGEST:
                self._refuse("The host has stopped answering.")
                return None
            if not select.select([process.stdout], [], [], left)[0]:
                continue
            chunk = os.read(process.stdout.fileno(), 1 << 18)
            if chunk:
                self._printed += chunk
            else:
                if process.wait() == 255:  # ssh's own
                    self._refuse("The connection was lost.")
                return None

    def _refuse(self, words: str) -> None:
        """It is a break, if this has ever been whole; else it can't be done like this now."""
        if self._heard:
            raise AnsibleConnectionFailure(words)

    def _close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # What it has started there ends with its next word, which nobody takes.
        with contextlib.suppress(OSError):
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def over_shared(connection: Any) -> list[str] | None:
    """The words before a command that has to go over the connection that Ansible keeps.

    :returns: None where it keeps none, or one of which only ssh knows the socket's name.
    """
    path = getattr(connection, "control_path", None)
    folder = getattr(connection, "control_path_dir", None)
    if not (path and folder and getattr(connection, "transport", "") == "ssh"):
        return None
    try:
        socket = str(path) % {"directory": unfrackpath(folder)}
        program = str(connection.get_option("ssh_executable"))
        host = str(connection.host)
    except (AnsibleError, AttributeError, KeyError, TypeError, ValueError):
        return None
    if "%" in socket or not os.path.exists(socket):
        return None
    return [
        program,
        *("-F", "/dev/null", "-T", "-S", socket),
        # Without that socket there is no way to the host at all.
        *("-o", "ProxyCommand=false", "-o", "BatchMode=yes"),
        *("--", host),
    ]
