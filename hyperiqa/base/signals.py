"""SIGINT and SIGTERM, taken when it suits the program."""

import signal
import threading

from hyperiqa.base.errors import Interrupted


class StopSignals:
    """While active, SIGINT and SIGTERM raise Interrupted, or, while `deferred`, are noted in `received`.
    The second SIGINT is the system's again and ends the process at once; of `several` processes each may get the same
    one twice, from the terminal and from their launcher, which itself ends what does not stop."""

    def __init__(self, several: bool = False) -> None:
        self.several = several
        self.received: int | None = None
        self.deferred = False

    def __enter__(self) -> "StopSignals":
        allowed = (
            threading.current_thread() is threading.main_thread()
        )  # elsewhere Python does not allow it
        stops = (signal.SIGINT, signal.SIGTERM) if allowed else ()
        self._before = {signum: signal.signal(signum, self._note) for signum in stops}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: object) -> None:
        self.received = signum
        if not self.several:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if not self.deferred:
            raise Interrupted(signum)
