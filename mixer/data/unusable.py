"""Names images that cannot be used, each once, in lines on standard error; counts are in a run's metrics."""

import logging

from mixer.data.pixels import image_status
from mixer.data.sources import Source

_log = logging.getLogger(__name__)
_MOST = 10  # that are named; a dataset may have a million
_named: set[str] = set()


def tell(source: Source, number: int, status: int) -> None:
    """Names an image of a source, unless it was named before or many others were.

    Args:
      source: if it does not know the places of its images, nothing is said.
      number: of the record.
      status: an index into `image_status.STATUSES`, not OK.
    """
    place = source.place(number) if source.place else None
    if place is None or place in _named or len(_named) >= _MOST:
        return
    _named.add(place)
    more = "; no more are named" if len(_named) == _MOST else ""
    _log.warning("%s cannot be used: %s%s", place, image_status.STATUSES[status].replace("_", " "), more)
