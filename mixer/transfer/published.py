"""The names of the checkpoints that the authors of Mixer, SAM and GSAM published."""

import difflib

_BUCKET = "https://storage.googleapis.com/mixer_models"

# From names such as "B/16-i1k" to addresses.
PUBLISHED = {
    f"{variant}-{short}": f"{_BUCKET}/{folder}/Mixer-{variant.replace('/', '_')}.npz"
    for short, folder, variants in (
        ("i1k", "imagenet1k", ("B/16", "L/16")),
        ("i21k", "imagenet21k", ("B/16", "L/16")),
        ("sam", "sam", ("B/16", "B/32")),
        ("gsam", "gsam", ("B/16", "B/32", "S/8", "S/16", "S/32")),
    )
    for variant in variants
}


def suggestion(name: str) -> str:
    """Returns the end of a message about an unknown name: the nearest published name, or all of them."""
    names = {known.lower(): known for known in PUBLISHED}
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    return f"did you mean {names[near[0]]}?" if near else f"published checkpoints are {', '.join(PUBLISHED)}"
