"""Stop a run by a signal: the step is finished, everything is saved, and every rank leaves with the same exit code."""

import os
import signal
import socket
import threading
import time
from typing import Any

import util

STOPPED_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: stopped by a signal, all saved; start again with --resume auto


class StoppedBySignal(SystemExit):
    """The run has saved everything after a signal; every rank leaves with `STOPPED_EXIT_CODE`."""

    def __init__(self):
        super().__init__(STOPPED_EXIT_CODE)


class StopRequest:
    """`is_set` once SIGTERM, SIGUSR1 (Slurm's warning before its time limit) or Ctrl-C has arrived.

    The second Ctrl-C stops at once. A launched process that receives SIGTERM while it waits for a lost rank exits
    after `GRACE_SECONDS` unless the run has answered by then (`is_answered`): Python handles no signal while a
    collective waits.
    """

    GRACE_SECONDS = 20

    def __init__(self):
        self.is_set = self.is_answered = False
        self._handlers_before: dict[int, Any] = {}

    def listen(self) -> None:
        """Handle the signals from now on; outside the main thread Python cannot, and they stay as they are."""
        if threading.current_thread() is not threading.main_thread():
            return
        numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)  # the process that started this one may block them
        for number in numbers:
            self._handlers_before[number] = signal.signal(number, self._handle)
        if util.is_launched():
            reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._exit_after_grace, args=(reader,), daemon=True).start()

    def forget(self) -> None:
        """Restore the handlers from before `listen`, for a program that goes on after the run.

        A launched process keeps them: its launcher may signal it again while it exits, and its exit code counts.
        """
        if not util.is_launched():
            for number, handler in self._handlers_before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.is_set = True

    def _exit_after_grace(self, reader: socket.socket) -> None:
        """Wait for SIGTERM in a thread, which no collective blocks, and exit if the run does not answer."""
        while reader.recv(1) != bytes([signal.SIGTERM]):
            continue
        time.sleep(self.GRACE_SECONDS)
        if not self.is_answered:
            os._exit(128 + signal.SIGTERM)
