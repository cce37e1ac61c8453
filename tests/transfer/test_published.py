"""The names of published checkpoints."""

from mixer.transfer import published


def test_the_published_checkpoints_are_where_their_authors_put_them():
    """Compares with the list in the notebook of google-research/vision_transformer."""
    bucket = "https://storage.googleapis.com/mixer_models"
    assert {
        "B/16-i1k": f"{bucket}/imagenet1k/Mixer-B_16.npz",
        "L/16-i1k": f"{bucket}/imagenet1k/Mixer-L_16.npz",
        "B/16-i21k": f"{bucket}/imagenet21k/Mixer-B_16.npz",
        "L/16-i21k": f"{bucket}/imagenet21k/Mixer-L_16.npz",
        "B/16-sam": f"{bucket}/sam/Mixer-B_16.npz",
        "B/32-sam": f"{bucket}/sam/Mixer-B_32.npz",
        "B/16-gsam": f"{bucket}/gsam/Mixer-B_16.npz",
        "B/32-gsam": f"{bucket}/gsam/Mixer-B_32.npz",
        "S/8-gsam": f"{bucket}/gsam/Mixer-S_8.npz",
        "S/16-gsam": f"{bucket}/gsam/Mixer-S_16.npz",
        "S/32-gsam": f"{bucket}/gsam/Mixer-S_32.npz",
    } == published.PUBLISHED
