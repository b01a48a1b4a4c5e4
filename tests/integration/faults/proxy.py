"""A link that can be cut: a proxy on the loopback interface in front of the host's sshd."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time


class Link:
    """Passes bytes on to ``target``, until it is told otherwise."""

    def __init__(self, target: int) -> None:
        """:param target: the port of the sshd behind it, on 127.0.0.1."""
        self._target = target
        self._mutex = threading.Lock()
        self._ends: set[socket.socket] = set()
        self._open = True
        self._flows = threading.Event()
        self._flows.set()
        self._closed = False
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Reset every connection, and each new one at once."""
        with self._mutex:
            self._open = False
            ends, self._ends = self._ends, set()
        for end in ends:
            _reset(end)

    def hush(self) -> None:
        """Pass nothing on any more, and say nothing of it: a cable that was pulled."""
        self._flows.clear()

    def restore(self) -> None:
        """Pass on what comes; of what was said while it was silent nothing arrives."""
        with self._mutex:
            self._open = True
            ends, self._ends = (self._ends, set()) if not self._flows.is_set() else ([], self._ends)
        for end in ends:
            _reset(end)
        self._flows.set()

    def flap(self, times: int, away: float) -> None:
        """Cut and restore, so many times."""
        for _ in range(times):
            self.cut()
            time.sleep(away)
            self.restore()
            time.sleep(away)

    def close(self) -> None:
        """End all of it."""
        self._closed = True
        self.cut()
        self._flows.set()
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _address = self._listening.accept()
                if not self._open:
                    _reset(near)
                    continue
                try:
                    far = socket.create_connection(("127.0.0.1", self._target))
                except OSError:  # the sshd behind it isn't there
                    _reset(near)
                    continue
                with self._mutex:
                    self._ends |= {near, far}
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(256 * 1024):
                self._flows.wait()
                if self._closed:
                    return
                sink.sendall(content)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def _reset(end: socket.socket) -> None:
    """Close a connection so that the other side gets RST, as from a router that has forgotten."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RD)  # the thread that reads from it lets go of it
    end.close()
