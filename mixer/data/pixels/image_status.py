"""What can be wrong with an image. Batches and checkpoints hold the status as a number, an index into STATUSES."""

STATUSES = ("ok", "bad_record", "empty", "unknown_format", "truncated", "undecodable", "too_large")
OK, BAD_RECORD, EMPTY, UNKNOWN_FORMAT, TRUNCATED, UNDECODABLE, TOO_LARGE = range(len(STATUSES))
