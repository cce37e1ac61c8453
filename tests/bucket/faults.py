"""What goes wrong in the fake bucket, and how slow it is."""

import dataclasses
import re
import threading
import urllib.parse


@dataclasses.dataclass
class Fault:
    """A rule: requests that match it fail.

    Attributes:
      match: a regular expression, searched in "METHOD path?query"; the path without %-escapes.
      status: the answer's status instead of the request's effect, such as 403, 404, 429 or 503. None lets the request
        have its effect.
      times: how many requests fail; None for every one, for good.
      skip: how many matching requests pass before the first that fails.
      hang_seconds: the answer waits so long. A reset ends the wait.
      cut_after: the connection is closed after so many bytes of the answer's body; with 0, before any answer.
    """

    match: str
    status: int | None = None
    times: int | None = None
    skip: int = 0
    hang_seconds: float = 0
    cut_after: int | None = None


NO_FAULT = Fault("")


@dataclasses.dataclass
class Faults:
    """The bucket's behaviour beyond its objects.

    Attributes:
      rules: the first that matches a request is the one that counts.
      latency_ms: how long every request waits before it is looked at.
      bytes_per_second: how fast an answer is sent, for each connection; 0 for as fast as it goes.
    """

    rules: list[Fault] = dataclasses.field(default_factory=list)
    latency_ms: float = 0
    bytes_per_second: float = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._over = threading.Event()

    def of(self, method: str, target: str) -> Fault:
        """Returns the fault that a request meets, and counts it."""
        described = f"{method} {urllib.parse.unquote(target)}"
        with self._lock:
            for rule in self.rules:
                if rule.times == 0 or not re.search(rule.match, described):
                    continue
                if rule.skip:
                    rule.skip -= 1
                    continue
                if rule.times is not None:
                    rule.times -= 1
                return rule
        return NO_FAULT

    def wait(self, seconds: float) -> None:
        """Waits, without work for a core, until the time or the faults are over."""
        if seconds > 0:
            self._over.wait(seconds)

    def end(self) -> None:
        """Ends all waiting."""
        self._over.set()
