"""A TCP proxy on the loopback interface whose link can be cut: with a word, or without one."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading


class CuttingProxy:
    """Listens on a port of its own, and passes on what comes to another one.

    :param target: address and port of the server behind it.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._open: list[socket.socket] = []
        self._flows = threading.Event()
        self._flows.set()
        self._refuses = False
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def silence(self) -> None:
        """Pass nothing on any more, and say nothing of it, as where packets are dropped."""
        self._flows.clear()

    def reset(self) -> None:
        """Break every connection with a reset, and each one that comes, until it is mended."""
        self._refuses = True
        opened, self._open = self._open, []
        for one in opened:
            with contextlib.suppress(OSError):
                # A linger of zero seconds makes a reset of the close (socket(7)).
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.shutdown(socket.SHUT_RDWR)
                one.close()

    def mend(self) -> None:
        """Pass everything on again; what was silent until now stays dead."""
        if not self._flows.is_set():
            opened, self._open = self._open, []
            for one in opened:
                with contextlib.suppress(OSError):
                    one.close()
        self._refuses = False
        self._flows.set()

    def close(self) -> None:
        """End all of it."""
        self._listening.close()
        self.reset()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _address = self._listening.accept()
                if self._refuses:
                    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    near.close()
                    continue
                far = socket.create_connection(self._target)
                self._open += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(256 * 1024):
                self._flows.wait()
                sink.sendall(content)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
