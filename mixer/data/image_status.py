"""What can be wrong with an image, by number: how batches and states count it. Here, since `data/` needs TensorFlow."""

STATUSES = ("ok", "bad_record", "empty", "unknown_format", "truncated", "undecodable", "too_large")
OK, BAD_RECORD, EMPTY, UNKNOWN_FORMAT, TRUNCATED, UNDECODABLE, TOO_LARGE = range(len(STATUSES))
