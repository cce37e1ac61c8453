// The forward pass of MLP-Mixer in plain JavaScript. A matrix is a Float32Array, row by row; tokens are rows.

/** Returns left [rows x inner] times right [inner x columns]. */
function product(left, right, rows, inner, columns) {
  const result = new Float32Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    const into = result.subarray(row * columns, (row + 1) * columns);
    for (let k = 0; k < inner; k++) {
      const factor = left[row * inner + k];
      const from = right.subarray(k * columns, (k + 1) * columns);
      for (let column = 0; column < columns; column++) into[column] += factor * from[column];
    }
  }
  return result;
}

/** Returns a matrix with rows and columns exchanged. */
function transposed(matrix, rows, columns) {
  const result = new Float32Array(matrix.length);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) result[column * rows + row] = matrix[row * columns + column];
  }
  return result;
}

/** Adds bias[row] to each row, in place. */
function addToRows(matrix, bias) {
  const columns = matrix.length / bias.length;
  for (let i = 0; i < matrix.length; i++) matrix[i] += bias[Math.floor(i / columns)];
  return matrix;
}

/** Adds bias[column] to each column, in place. */
function addToColumns(matrix, bias) {
  for (let i = 0; i < matrix.length; i++) matrix[i] += bias[i % bias.length];
  return matrix;
}

/** Returns the sum of two arrays. */
function sum(a, b) {
  return a.map((value, i) => value + b[i]);
}

const GELU_SCALE = Math.sqrt(2 / Math.PI);

/** Applies GELU in its tanh form, in place. */
function gelu(x) {
  for (let i = 0; i < x.length; i++) {
    const v = x[i];
    x[i] = 0.5 * v * (1 + Math.tanh(GELU_SCALE * (v + 0.044715 * v * v * v)));
  }
  return x;
}

/** Normalises each row to mean 0 and variance 1, then scales and shifts its columns. */
function layerNorm(x, { scale, bias }) {
  const width = scale.length;
  const result = new Float32Array(x.length);
  for (let start = 0; start < x.length; start += width) {
    let mean = 0;
    for (let i = 0; i < width; i++) mean += x[start + i] / width;
    let variance = 0;
    for (let i = 0; i < width; i++) variance += (x[start + i] - mean) ** 2 / width;
    const factor = 1 / Math.sqrt(variance + 1e-6);
    for (let i = 0; i < width; i++) result[start + i] = (x[start + i] - mean) * factor * scale[i] + bias[i];
  }
  return result;
}

/** Cuts an image into patches and projects each to a token: [grid^2 x channels]. */
function stem(model, image) {
  const { size, patch, channels } = model;
  const grid = size / patch;
  const inner = patch * patch * 3;
  const patches = new Float32Array(grid * grid * inner);
  forEachPatchPixel(size, patch, (pixel, token, within) => {
    for (let colour = 0; colour < 3; colour++) {
      patches[token * inner + within * 3 + colour] = image[pixel * 3 + colour] / 127.5 - 1;
    }
  });
  return addToColumns(product(patches, model.stem.kernel, grid * grid, inner, channels), model.stem.bias);
}

/** Calls visit(number of the pixel in the image, number of its patch, its number within the patch). */
function forEachPatchPixel(size, patch, visit) {
  const grid = size / patch;
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      const token = Math.floor(y / patch) * grid + Math.floor(x / patch);
      visit(y * size + x, token, (y % patch) * patch + (x % patch));
    }
  }
}

/** Mixes the tokens of each channel. The kernels are kept transposed: a row for each output. */
function mixTokens(block, x, tokens, channels) {
  const { first, second } = block.tokens;
  const units = first.bias.length;
  const hidden = product(first.rows, layerNorm(x, block.tokensNorm), units, tokens, channels);
  const mixed = product(second.rows, gelu(addToRows(hidden, first.bias)), tokens, units, channels);
  return sum(x, addToRows(mixed, second.bias));
}

/** Mixes the channels of each token. */
function mixChannels(block, x, tokens, channels) {
  const { first, second } = block.channels;
  const units = first.bias.length;
  const hidden = product(layerNorm(x, block.channelsNorm), first.kernel, tokens, channels, units);
  const mixed = product(gelu(addToColumns(hidden, first.bias)), second.kernel, tokens, units, channels);
  return sum(x, addToColumns(mixed, second.bias));
}

/** Returns the logits that the head gives for tokens: LayerNorm, mean over tokens, head. */
function readOut(model, x) {
  const { channels } = model;
  const normalised = layerNorm(x, model.norm);
  const tokens = x.length / channels;
  const mean = new Float32Array(channels);
  for (let i = 0; i < normalised.length; i++) mean[i % channels] += normalised[i] / tokens;
  return addToColumns(product(mean, model.head.kernel, 1, channels, model.head.bias.length), model.head.bias);
}

/**
 * Classifies an image.
 *
 * @param model as `unpacked` returns it.
 * @param image size x size x 3 numbers from 0 to 255.
 * @returns stages, the tokens after the stem and after each mixing: {name, tokens}; and guesses, the logits of the head
 *   after the stem and after each block. The last are the model's own.
 */
function forward(model, image) {
  const tokens = (model.size / model.patch) ** 2;
  let x = stem(model, image);
  const stages = [{ name: "after the stem", tokens: x }];
  const guesses = [readOut(model, x)];
  model.blocks.forEach((block, number) => {
    x = mixTokens(block, x, tokens, model.channels);
    stages.push({ name: `block ${number}, tokens mixed`, tokens: x });
    x = mixChannels(block, x, tokens, model.channels);
    stages.push({ name: `block ${number}, channels mixed`, tokens: x });
    guesses.push(readOut(model, x));
  });
  return { stages, guesses };
}

/** Returns probabilities: a softmax over the logits, or a sigmoid of each. */
function probabilities(logits, kind) {
  if (kind === "sigmoid") return logits.map((logit) => 1 / (1 + Math.exp(-logit)));
  const largest = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - largest));
  const total = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / total);
}

/** Returns {number, share} of each class, the likeliest first. By logits, since probabilities near 1 are equal. */
function ranked(logits, kind) {
  const shares = probabilities(logits, kind);
  return [...shares.keys()].sort((a, b) => logits[b] - logits[a]).map((number) => ({ number, share: shares[number] }));
}

/** Returns the image whose patch i is the given image's patch order[i]. */
function withPatchesMoved(image, size, patch, order) {
  const pixelOf = new Int32Array(size * size);
  const inPatch = patch * patch;
  forEachPatchPixel(size, patch, (pixel, token, within) => (pixelOf[token * inPatch + within] = pixel));
  const moved = new Uint8ClampedArray(image.length);
  forEachPatchPixel(size, patch, (pixel, token, within) => {
    const from = pixelOf[order[token] * inPatch + within];
    for (let colour = 0; colour < 3; colour++) moved[pixel * 3 + colour] = image[from * 3 + colour];
  });
  return moved;
}

/** Returns the model whose token-mixing weights are moved as `withPatchesMoved` moves patches. */
function withWeightsMoved(model, order) {
  const tokens = order.length;
  const blocks = model.blocks.map((block) => {
    const { first, second } = block.tokens;
    const units = first.bias.length;
    const rows = new Float32Array(first.rows.length);
    for (let unit = 0; unit < units; unit++) {
      for (let token = 0; token < tokens; token++) rows[unit * tokens + token] = first.rows[unit * tokens + order[token]];
    }
    const outputs = new Float32Array(second.rows.length);
    for (let token = 0; token < tokens; token++) {
      outputs.set(second.rows.subarray(order[token] * units, (order[token] + 1) * units), token * units);
    }
    const bias = second.bias.map((_, token) => second.bias[order[token]]);
    return { ...block, tokens: { first: { ...first, rows }, second: { rows: outputs, bias } } };
  });
  return { ...model, blocks };
}
