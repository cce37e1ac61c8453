"""Parts of Mixer and ViT in float64 NumPy, written from the papers; q are a layer's parameters."""

import numpy as np


def norm(x, q):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-6) * q["scale"] + q["bias"]


def mlp(x, q):
    h = x @ q["Dense_0"]["kernel"] + q["Dense_0"]["bias"]
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return h @ q["Dense_1"]["kernel"] + q["Dense_1"]["bias"]


def patch_tokens(images, patch, q):
    """Patches cut by hand, row by row, and projected."""
    rows, columns = images.shape[1] // patch, images.shape[2] // patch
    tokens = [
        images[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch].reshape(len(images), -1)
        for r in range(rows)
        for c in range(columns)
    ]
    return np.stack(tokens, 1) @ q["kernel"].reshape(patch * patch * 3, -1) + q["bias"]
