"""A socket on which a test answers in pluto's place."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable


class Listener:
    """A Unix socket that is served by a thread: `answer` gets one connection after the other, until close()."""

    def __init__(self, path: str, answer: Callable[[socket.socket], None], kind: int = socket.SOCK_STREAM) -> None:
        self._answer = answer
        self._socket = socket.socket(socket.AF_UNIX, kind)
        self._socket.bind(path)
        self._socket.listen(5)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self._socket.accept()
            except OSError:
                return
            with link:
                self._answer(link)

    def close(self) -> None:
        """Stop listening, and wait for the thread."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(30)
