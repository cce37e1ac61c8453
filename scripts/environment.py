"""Makes a virtual environment for `make`, or keeps the one that is there, and says of which Python it is.

    python scripts/environment.py .venv

It needs nothing but Python, and is run by the Python that the environment shall have.
"""

import argparse
import pathlib
import re
import subprocess
import sys

LOWEST, HIGHEST = (3, 11), (3, 13)  # `requires-python` of pyproject.toml


def main(folder: str, only: str | None = None) -> None:
    """Makes the environment. Exits with one line if this Python is unsuitable or the environment has another.

    Args:
      folder: of the environment.
      only: the one version that it may have, such as 3.11.
    """
    version = sys.version_info[:2]
    name = f"{version[0]}.{version[1]}"
    if not LOWEST <= version <= HIGHEST:
        sys.exit(f"error: {sys.executable} is Python {name}; 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.13 ...")
    if only not in (None, name):
        sys.exit(f"error: {sys.executable} is Python {name}; {folder} is for {only}: make PYTHON=python{only} ...")
    settings = pathlib.Path(folder) / "pyvenv.cfg"
    found = re.search(r"^version = (\d+\.\d+)", settings.read_text(), re.MULTILINE) if settings.is_file() else None
    if found and found[1] != name:
        sys.exit(f"error: {folder} has Python {found[1]}, not {name}: remove it first (rm -r {folder})")
    if not (found and (pathlib.Path(folder) / "bin" / "pip").exists()):
        made = subprocess.run([sys.executable, "-m", "venv", folder], check=False)
        if made.returncode:
            sys.exit(f"error: this Python {name} cannot make environments (Debian: apt install python{name}-venv)")
    print(f"{folder}: Python {name}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="of the environment")
    parser.add_argument("--only", metavar="VERSION", help="refuse another Python than this, such as 3.11")
    main(**vars(parser.parse_args()))
