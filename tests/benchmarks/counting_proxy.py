"""A TCP proxy on the loopback interface that counts the bytes that pass, both ways together."""

from __future__ import annotations

import contextlib
import socket
import threading


class CountingProxy:
    """Listens on a port of its own, and passes on what comes to another one."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._count = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def count(self) -> int:
        """Bytes that have passed so far."""
        with self._lock:
            return self._count

    def close(self) -> None:
        """Take no more connections; those that are open go on until an end closes them."""
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _address = self._listening.accept()
                far = socket.create_connection(self._target)
                for one, other in ((near, far), (far, near)):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(256 * 1024):
                with self._lock:
                    self._count += len(content)
                sink.sendall(content)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
