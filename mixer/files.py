"""Small files that are there whole or not at all."""

from etils import epath


def write_whole(path: epath.Path, text: str) -> None:
    """Writes a file through another name, so that a kill in the middle leaves the one before.

    Raises:
      OSError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)
