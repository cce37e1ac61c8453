"""An end that is always an end: threads of libraries cannot keep a process that has nothing more to do."""

import os
import sys
import threading
import time

_GRACE = 8.0  # seconds that other threads get after the main thread has ended


class Ending:
    """Ends the process some seconds after its main thread, whatever other threads do.

    Threads of the input, of Orbax or of a bucket's client may wait for an answer that never comes. Python waits for
    them, after an error too.

    Attributes:
      status: the exit status, in case the process must be ended.
    """

    def __init__(self) -> None:
        """Starts to watch the main thread. Until `status` is set, an end counts as an error."""
        self.status = 1
        threading.Thread(target=self._watch, name="ending", daemon=True).start()

    def _watch(self) -> None:
        threading.main_thread().join()  # returns when Python begins to wait for the other threads
        time.sleep(_GRACE)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(self.status)
