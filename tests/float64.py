"""Models, losses and optimizers in float64 NumPy, written from the papers: what the tests expect of the code.

Parameters are nested dicts of float64 arrays, named as in the models; `q` are those of one layer.
"""

import numpy as np

# ------------------------------------------------------------------------------------------------------------- models


def norm(x, q):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-6) * q["scale"] + q["bias"]


def gelu(h):
    """The tanh approximation."""
    return 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))


def mlp(x, q, kept=(1.0, 1.0)):
    """Two dense layers. `kept` multiplies the output of GELU and of the second layer: the masks of dropout."""
    h = kept[0] * gelu(x @ q["Dense_0"]["kernel"] + q["Dense_0"]["bias"])
    return kept[1] * (h @ q["Dense_1"]["kernel"] + q["Dense_1"]["bias"])


def patch_tokens(images, patch, q):
    """Patches cut by hand, row by row, and projected."""
    rows, columns = images.shape[1] // patch, images.shape[2] // patch
    tokens = [
        images[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch].reshape(len(images), -1)
        for r in range(rows)
        for c in range(columns)
    ]
    return np.stack(tokens, 1) @ q["kernel"].reshape(patch * patch * 3, -1) + q["bias"]


def mixer(p, images, patch, num_blocks):
    """Mixer's Eq. 1 and Figure 1. Returns the logits, and the outputs of the MLPs by block and name."""
    x, outputs = patch_tokens(images, patch, p["stem"]), {}
    for block in range(num_blocks):
        q = p[f"MixerBlock_{block}"]
        tokens = mlp(np.swapaxes(norm(x, q["LayerNorm_0"]), 1, 2), q["token_mixing"])
        x = x + np.swapaxes(tokens, 1, 2)
        channels = mlp(norm(x, q["LayerNorm_1"]), q["channel_mixing"])
        x = x + channels
        outputs[f"MixerBlock_{block}"] = {"token_mixing": tokens, "channel_mixing": channels}
    logits = norm(x, p["pre_head_layer_norm"]).mean(1) @ p["head"]["kernel"] + p["head"]["bias"]
    return logits, outputs


def mixed_tokens(x, q, kind, groups):
    """Appendix A.1's token mixing of normalised tokens, channel by channel and group by group."""
    if kind == "views":  # G functions from C to C/G channels; feature j of view g takes the place of channel jG + g
        kernel, features = q["token_views"]["kernel"], x.shape[2] // groups
        seen = [x @ kernel[:, view::groups] for view in range(groups)]
        x = np.stack([seen[view][:, :, j] for j in range(features) for view in range(groups)], axis=2)
    q, channels = q["token_mixing"], x.shape[2]
    if kind == "shared":
        return np.stack([mlp(x[:, :, c], q) for c in range(channels)], axis=2)
    if kind == "untied":
        of_group = [
            {name: {k: v[group] for k, v in layer.items()} for name, layer in q.items()} for group in range(groups)
        ]
        return np.stack([mlp(x[:, :, c], of_group[c // (channels // groups)]) for c in range(channels)], axis=2)
    columns = []
    for first in range(0, channels, groups):
        vector = np.concatenate([x[:, :, first + member] for member in range(groups)], axis=1)
        columns += np.split(mlp(vector, q), groups, axis=1)
    return np.stack(columns, axis=2)


def pooled_tokens(x, tokens_out):
    """The mean over the tokens of each square of a grid, found by their rows and columns."""
    before, after = round(x.shape[1] ** 0.5), round(tokens_out**0.5)
    squares = [[] for _ in range(tokens_out)]
    for token in range(x.shape[1]):
        row, column = token // before, token % before
        squares[row * after // before * after + column * after // before].append(x[:, token])
    return np.stack([np.mean(square, axis=0) for square in squares], axis=1)


def ablated_mixer(p, images, patch, num_blocks, kind="shared", groups=1, pyramid=None):
    """The logits of a Mixer with Appendix A.1's token mixing."""
    x = patch_tokens(images, patch, p["stem"])
    for block in range(num_blocks):
        q = p[f"MixerBlock_{block}"]
        tokens = mixed_tokens(norm(x, q["LayerNorm_0"]), q, kind, groups)
        x = (x if pyramid is None else pooled_tokens(x, pyramid[block])) + tokens
        x = x + mlp(norm(x, q["LayerNorm_1"]), q["channel_mixing"])
    return norm(x, p["pre_head_layer_norm"]).mean(1) @ p["head"]["kernel"] + p["head"]["bias"]


def norm_gradient(x, q, g):
    """The gradients of sum(g * norm(x, q)) with respect to x and q."""
    std = np.sqrt(((x - x.mean(-1, keepdims=True)) ** 2).mean(-1, keepdims=True) + 1e-6)
    normal, h = (x - x.mean(-1, keepdims=True)) / std, g * q["scale"]
    along = h - h.mean(-1, keepdims=True) - normal * (h * normal).mean(-1, keepdims=True)
    return along / std, {"scale": np.sum(g * normal, (0, 1)), "bias": np.sum(g, (0, 1))}


def dense_gradient(x, q, g):
    """The gradients of sum(g * (x @ kernel + bias)) with respect to x and q."""
    return g @ q["kernel"].T, {"kernel": np.einsum("bti,btj->ij", x, g), "bias": np.sum(g, (0, 1))}


def mlp_gradient(x, q, g):
    """The gradients of sum(g * mlp(x, q)) with respect to x and q."""
    h = x @ q["Dense_0"]["kernel"] + q["Dense_0"]["bias"]
    t = np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))
    slope = 0.5 * (1 + t) + 0.5 * h * (1 - t**2) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * h**2)
    g, second = dense_gradient(0.5 * h * (1 + t), q["Dense_1"], g)
    g, first = dense_gradient(x, q["Dense_0"], g * slope)
    return g, {"Dense_0": first, "Dense_1": second}


def mixer_gradient(p, images, patch, num_blocks, g):
    """The gradient of sum(g * logits) with respect to the parameters of `mixer`."""
    x, inputs = patch_tokens(images, patch, p["stem"]), []
    for block in range(num_blocks):
        q = p[f"MixerBlock_{block}"]
        middle = x + np.swapaxes(mlp(np.swapaxes(norm(x, q["LayerNorm_0"]), 1, 2), q["token_mixing"]), 1, 2)
        inputs.append((x, middle))
        x = middle + mlp(norm(middle, q["LayerNorm_1"]), q["channel_mixing"])
    last = norm(x, p["pre_head_layer_norm"]).mean(1)
    found = {"head": {"kernel": last.T @ g, "bias": g.sum(0)}}
    g = np.broadcast_to((g @ p["head"]["kernel"].T)[:, None] / x.shape[1], x.shape)
    g, found["pre_head_layer_norm"] = norm_gradient(x, p["pre_head_layer_norm"], g)
    for block in reversed(range(num_blocks)):
        (x, middle), q = inputs[block], p[f"MixerBlock_{block}"]
        branch, channels = mlp_gradient(norm(middle, q["LayerNorm_1"]), q["channel_mixing"], g)
        branch, norm_1 = norm_gradient(middle, q["LayerNorm_1"], branch)
        g = g + branch
        normal = np.swapaxes(norm(x, q["LayerNorm_0"]), 1, 2)
        branch, tokens = mlp_gradient(normal, q["token_mixing"], np.swapaxes(g, 1, 2))
        branch, norm_0 = norm_gradient(x, q["LayerNorm_0"], np.swapaxes(branch, 1, 2))
        g = g + branch
        found[f"MixerBlock_{block}"] = {
            "LayerNorm_0": norm_0, "token_mixing": tokens, "LayerNorm_1": norm_1, "channel_mixing": channels
        }  # fmt: skip
    pixels = patch * patch * 3
    patches = patch_tokens(images, patch, {"kernel": np.eye(pixels), "bias": 0.0})
    _, stem = dense_gradient(patches, {"kernel": np.zeros((pixels, x.shape[-1]))}, g)
    found["stem"] = {"kernel": stem["kernel"].reshape(p["stem"]["kernel"].shape), "bias": stem["bias"]}
    return found


def attention(x, q, num_heads):
    """Self-attention, the heads one by one."""
    y = np.broadcast_to(q["out"]["bias"], x.shape)
    for head in range(num_heads):
        query, key, value = (
            x @ q[name]["kernel"][:, head] + q[name]["bias"][head] for name in ("query", "key", "value")
        )
        scores = query @ np.swapaxes(key, 1, 2) / np.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        y = y + weights / weights.sum(-1, keepdims=True) @ value @ q["out"]["kernel"][head]
    return y


def vit(p, images, patch, num_blocks, num_heads):
    """ViT's Eq. 1 to 4. Returns the logits, and the outputs of attention and MLP by block and name."""
    x, outputs = patch_tokens(images, patch, p["embedding"]), {}
    x = np.concatenate([np.broadcast_to(p["cls"], (len(images), 1, x.shape[2])), x], axis=1)
    encoder = p["Transformer"]
    x = x + encoder["posembed_input"]["pos_embedding"]
    for block in range(num_blocks):
        q = encoder[f"encoderblock_{block}"]
        attended = attention(norm(x, q["LayerNorm_0"]), q["MultiHeadDotProductAttention_1"], num_heads)
        x = x + attended
        hidden = mlp(norm(x, q["LayerNorm_2"]), q["MlpBlock_3"])
        x = x + hidden
        outputs[f"encoderblock_{block}"] = {"MultiHeadDotProductAttention_1": attended, "MlpBlock_3": hidden}
    return norm(x, encoder["encoder_norm"])[:, 0] @ p["head"]["kernel"] + p["head"]["bias"], outputs


# ------------------------------------------------------------------------------------------------------------- losses


def targets(labels, num_classes):
    """Rows of zeros and ones; label -1 is padding."""
    rows = np.zeros((len(labels), num_classes))
    for row, example in zip(rows, labels, strict=True):
        for label in example:
            if label >= 0:
                row[label] = 1
    return rows


def sigmoid_loss(logits, targets):
    """-t log s(x) - (1 - t) log(1 - s(x)), where -log s(x) = log(1 + e^-x)."""
    return np.sum(targets * np.logaddexp(0, -logits) + (1 - targets) * np.logaddexp(0, logits), axis=1)


def sigmoid_gradient(logits, targets):
    return 1 / (1 + np.exp(-logits)) - targets


def softmax_loss(logits, targets):
    log_sum = np.logaddexp.reduce(logits, axis=1, keepdims=True)
    counts = targets.sum(axis=1, keepdims=True)
    return -np.sum(targets / np.maximum(counts, 1) * (logits - log_sum), axis=1)


def softmax_gradient(logits, targets):
    """For rows with a label."""
    return np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)) - targets / targets.sum(1, keepdims=True)


LOSSES = {"sigmoid_xent": sigmoid_loss, "softmax_xent": softmax_loss}
LOSS_GRADIENTS = {"sigmoid_xent": sigmoid_gradient, "softmax_xent": softmax_gradient}


def slope(function, x, direction, step=1e-6):
    """The derivative of function(x) along a direction, by a central difference."""
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


# ---------------------------------------------------------------------------------------------------------- optimizers


def schedule(config, warmup, total, step):
    """The definition: linear to the peak over the first `warmup` steps, then config.decay over what is left."""
    if step < warmup:
        return config.learning_rate * (step + (not config.warmup_from_zero)) / warmup
    done = min((step - warmup) / max(total - warmup, 1), 1)
    factor = {"linear": 1 - done, "cosine": (1 + np.cos(np.pi * done)) / 2, "constant": 1}[config.decay]
    end = 0 if config.decay == "constant" else config.end_factor
    return config.learning_rate * (end + (1 - end) * factor)


def orthogonalized(matrix, epsilon):
    """Muon's five Newton-Schulz steps (Jordan 2024): near U V^T of the singular value decomposition, not at it."""
    x = matrix / (np.linalg.norm(matrix) + epsilon)
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def nesterov(momentum, grad, beta, step):
    """The momentum of the step to come (Dozat 2016), each part rid of its bias to zero."""
    return beta * momentum / (1 - beta ** (step + 2)) + (1 - beta) * grad / (1 - beta ** (step + 1))


def global_norm(tree):
    return np.sqrt(sum(np.sum(array**2) for array in tree.values()))


class Optimizer:
    """config.optimizer's update with clipping, warm-up and decoupled decay. Parameters are arrays by name.

    Attributes:
      first, second: the moments, by name.
    """

    def __init__(self, config, warmup, total, params):
        self.config, self.warmup, self.total, self.step = config, warmup, total, 0
        self.first = {name: np.zeros_like(value) for name, value in params.items()}
        self.second = {name: np.zeros_like(value) for name, value in params.items()}

    def update(self, params, grads):
        """Returns the parameters after one step."""
        config, new = self.config, {}
        scale = config.clip_norm / max(global_norm(grads), config.clip_norm) if config.clip_norm else 1
        rate = schedule(config, self.warmup, self.total, self.step)
        for name, value in params.items():
            decay = config.weight_decay * value if "kernel" in name else 0
            new[name] = value - rate * (self._direction(name, grads[name] * scale) + decay)
        self.step += 1
        return new

    def _direction(self, name, grad):
        config, first, second, step = self.config, self.first, self.second, self.step
        if config.name == "momentum":
            first[name] = config.beta1 * first[name] + grad
            return first[name]
        if config.name == "muon" and grad.ndim == 3 and "token_mixing" in name:  # untied: one matrix for each group
            parts = [f"{name} of {group}" for group in range(len(grad))]
            for part in parts:
                first.setdefault(part, np.zeros_like(grad[0]))
            return np.stack([self._direction(part, one) for part, one in zip(parts, grad, strict=True)])
        if config.name == "muon" and grad.ndim == 3 and "Attention" in name:  # a matrix whose one side is all heads
            rows = grad.shape[0] * grad.shape[1] if "'out'" in name else grad.shape[0]
            matrix, whole = grad.reshape(rows, -1), f"{name} as a matrix"
            first.setdefault(whole, np.zeros_like(matrix))
            return self._direction(whole, matrix).reshape(grad.shape)
        if config.name == "muon" and grad.ndim == 2 and "bias" not in name:
            first[name] = 0.95 * first[name] + 0.05 * grad
            size = 0.2 * np.sqrt(max(grad.shape))  # a matrix with orthonormal rows has RMS 1/sqrt(columns)
            return size * orthogonalized(nesterov(first[name], grad, 0.95, step), config.epsilon)
        first[name] = config.beta1 * first[name] + (1 - config.beta1) * grad
        second[name] = config.beta2 * second[name] + (1 - config.beta2) * grad**2
        mean = first[name] / (1 - config.beta1 ** (step + 1))
        if config.name == "muon":
            mean = nesterov(first[name], grad, config.beta1, step)
        spread = np.sqrt(second[name] / (1 - config.beta2 ** (step + 1)))
        return mean / (spread + config.epsilon)
