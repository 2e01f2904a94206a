"""SIGINT and SIGTERM, handled when the program is ready for them."""

import signal
import threading

from hyperiqa.base.errors import Interrupted


class StopSignals:
    """While active, SIGINT and SIGTERM raise Interrupted.

    deferred: while it is True, a signal is only noted in `received`, and the program stops when it
    is ready.
    several: whether this is one of several processes of a run. Such a process may receive the same
    signal twice, from the terminal and from its launcher, so it ignores the second one. If it does
    not stop, its launcher ends it. A single process ends at once at the second SIGINT.
    """

    def __init__(self, several: bool = False) -> None:
        self.several = several
        self.received: int | None = None
        self.deferred = False

    def __enter__(self) -> "StopSignals":
        self._previous_handlers = {}
        # Python allows only the main thread to set handlers.
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous_handlers[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous_handlers.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: object) -> None:
        self.received = signum
        if not self.several:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if not self.deferred:
            raise Interrupted(signum)
