"""The git program of a machine: asks for nothing, runs nothing of a repository's, hangs never."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import IO, NamedTuple

from .errors import TrainError
from .file_names import shown
from .git_failures import failure
from .git_url import Remote, without_secrets

SILENT = 120.0
"""Seconds in which a transfer or a checkout must show that it goes on."""

QUIET = 900.0
"""Seconds for a command that has nothing to show before its end."""

GRACE = 5.0
"""Seconds in which a git that is told to end puts away its locks."""

SSH = (
    "ssh -oBatchMode=yes -oStrictHostKeyChecking=yes"
    " -oConnectTimeout=20 -oServerAliveInterval=15 -oServerAliveCountMax=3"
)

# What a repository, or a person's own configuration for work by hand, must not do here.
_CONFIG = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "protocol.allow=never",
    *(f"protocol.{name}.allow=always" for name in ("https", "http", "ssh", "git")),
    # From a command line, but not from a submodule: CVE-2022-39253.
    "protocol.file.allow=user",
    "protocol.ext.allow=never",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    "http.lowSpeedLimit=100",
    "http.lowSpeedTime=60",
    # Nothing stays behind that works in the background.
    "gc.autoDetach=false",
    "maintenance.autoDetach=false",
    "advice.detachedHead=false",
    "color.ui=false",
    "core.quotePath=false",
    "log.showSignature=false",
)
_PROMPTS = ("SSH_ASKPASS", "DISPLAY", "WAYLAND_DISPLAY", "LANGUAGE")
# The secrets are in git's environment, which only its user can read; a command line all can.
_HELPER = '!f() { test "$1" = get && printf "%s\\n" "username=$RT_USER" "password=$RT_WORD"; }; f'


def own_environment() -> dict[str, str]:
    """The environment without git's variables: those of a hook lead to another repository."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}


class Done(NamedTuple):
    """How git ended.

    :param status: its exit status.
    :param out: its standard output.
    :param said: its standard error.
    """

    status: int
    out: bytes
    said: str


class Git:
    """Git in one folder.

    :param folder: the root of a working tree; no repository above it is ever taken for it.
    :param remote: where to pull from, with what is secret about it.
    :param root: the project's root, for what a person is told; ``folder`` by default.
    """

    def __init__(self, folder: str, remote: Remote, root: str = "") -> None:
        self.folder = folder
        self.remote = remote
        self.root = root or folder

    def inside(self, name: str) -> Git:
        """Git in a submodule."""
        return Git(os.path.join(self.folder, name), self.remote, self.root)

    def ask(self, *words: str, given: bytes = b"") -> Done:
        """Run git and say how it ended, whatever that is."""
        return self._run(words, QUIET, given)

    def read(self, *words: str, what: str = "look at its repository", given: bytes = b"") -> bytes:
        """Run git and give what it printed.

        :param what: the end of "Git could not".
        :raises TrainError: when it fails, in words of our own where its own are known.
        """
        return self._checked(self._run(words, QUIET, given), what)

    def line(self, *words: str) -> str:
        """The one line that git printed, or nothing where it failed."""
        done = self.ask(*words)
        return "" if done.status else done.out.decode("utf-8", "surrogateescape").rstrip("\n")

    @contextlib.contextmanager
    def piped(self, *words: str) -> Iterator[IO[bytes]]:
        """What git prints, to be read bit by bit; nothing where it fails."""
        with subprocess.Popen(
            self._command(words),
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            try:
                assert process.stdout is not None  # noqa: S101 - for the type
                yield process.stdout
            finally:
                process.kill()  # who has read enough doesn't wait for the rest

    def names(self, *words: str) -> list[bytes]:
        """What git printed with a NUL behind each."""
        return [part for part in self.read(*words).split(b"\0") if part]

    def work(self, *words: str, what: str) -> str:
        """Run what takes long and shows that it goes on; what it said.

        :raises TrainError: when it fails, or falls silent for :data:`SILENT` seconds.
        """
        done = self._run(words, SILENT)
        self._checked(done, what)
        return done.said

    def failed(self, done: Done, what: str) -> TrainError:
        """The error that ``done`` is."""
        return failure(done.said, what, self.remote.url, self.root)

    def _checked(self, done: Done, what: str) -> bytes:
        if done.status:
            raise self.failed(done, what)
        return done.out

    def _command(self, words: tuple[str, ...]) -> list[str]:
        config = list(_CONFIG)
        if self.remote.has_login:
            # The empty one before it puts away the helpers of the person's own configuration,
            # so that none of them keeps what is meant for this once.
            helper = f"credential.{self.remote.site}.helper="
            config += [helper, helper + _HELPER]
        options = [part for value in config for part in ("-c", value)]
        return ["git", "-C", self.folder, "--no-pager", *options, *words]

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in own_environment().items() if name not in _PROMPTS}
        secrets = {"RT_USER": self.remote.user, "RT_WORD": self.remote.password}
        return {
            **kept,
            **(secrets if self.remote.has_login else {}),
            "LC_ALL": "C",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "",
            "SSH_ASKPASS_REQUIRE": "never",
            "GIT_SSH_COMMAND": SSH,
            # A look changes nothing, so it doesn't renew the index either.
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_CEILING_DIRECTORIES": os.path.dirname(os.path.realpath(self.folder)),
            "GIT_EDITOR": "false",
        }

    def _run(self, words: tuple[str, ...], patience: float, given: bytes = b"") -> Done:
        try:
            process = subprocess.Popen(
                self._command(words),
                env=self._environment(),
                stdin=subprocess.PIPE if given else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise TrainError(
                "Git is not installed on the host.",
                "Install it there, or use code_sync_mode=delta, which needs none.",
                "infra",
            ) from None
        try:
            out, said = _listen(process, patience, given)
        except BaseException as error:
            _end(process)
            if isinstance(error, TimeoutError):
                raise TrainError(
                    f"Git on the host showed nothing for {patience:.0f} s and was ended"
                    f" ({without_secrets(shown(words[0]))},"
                    f" {without_secrets(self.remote.url)}).",
                    "Check the host's network and its disk; then run it again.",
                    "infra",
                ) from None
            raise
        return Done(process.wait(), out, said.decode("utf-8", "backslashreplace"))


def _listen(process: subprocess.Popen[bytes], patience: float, given: bytes) -> tuple[bytes, bytes]:
    """Feed the process and read all that it writes, as long as it writes something."""
    heard: dict[str, bytearray] = {"out": bytearray(), "err": bytearray()}
    rest = memoryview(given)
    with selectors.DefaultSelector() as ready:
        for stream, name in ((process.stdout, "out"), (process.stderr, "err")):
            ready.register(stream, selectors.EVENT_READ, name)  # type: ignore[arg-type]
        if process.stdin:
            os.set_blocking(process.stdin.fileno(), False)
            ready.register(process.stdin, selectors.EVENT_WRITE, "in")
        until = time.monotonic() + patience
        while ready.get_map():
            events = ready.select(max(0.0, until - time.monotonic()))
            if not events and time.monotonic() >= until:
                raise TimeoutError
            for key, _ in events:
                until = time.monotonic() + patience
                if key.data == "in":
                    try:
                        rest = rest[os.write(key.fd, rest[:65536]) :]
                    except BrokenPipeError:
                        rest = rest[:0]
                    if not rest:
                        ready.unregister(key.fileobj)
                        key.fileobj.close()  # type: ignore[union-attr]
                    continue
                part = os.read(key.fd, 65536)
                heard[key.data] += part
                if not part:
                    ready.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
    return bytes(heard["out"]), bytes(heard["err"])


def _end(process: subprocess.Popen[bytes]) -> None:
    """End git and what it started; first in a way in which it puts away its locks."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            with contextlib.suppress(OSError):
                stream.close()


def has_git(folder: str) -> bool:
    """Whether a repository is there, or what leads to one."""
    return os.path.lexists(os.path.join(folder, ".git"))
