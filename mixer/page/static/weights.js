// The model's weights, as the page holds them: float16 in base64.

/** Returns the bytes of a text in base64. */
function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

/** Returns float16 numbers, given by their bits, as float32. */
function float32Of(bits) {
  const result = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) {
    const sign = bits[i] & 0x8000 ? -1 : 1;
    const exponent = (bits[i] >> 10) & 31;
    const fraction = (bits[i] & 1023) / 1024;
    result[i] = sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
  }
  return result;
}

/**
 * Returns the model that `forward` takes.
 *
 * @param packed size, patch, classes; arrays, the name and the shape of each parameter; data, all of them in base64.
 */
function unpacked(packed) {
  const all = float32Of(new Uint16Array(bytesOf(packed.data).buffer));
  const arrays = {};
  let start = 0;
  for (const [name, shape] of packed.arrays) {
    const length = shape.reduce((a, b) => a * b, 1);
    arrays[name] = all.subarray(start, start + length);
    start += length;
  }
  const norm = (name) => ({ scale: arrays[`${name}/scale`], bias: arrays[`${name}/bias`] });
  const dense = (name) => ({ kernel: arrays[`${name}/kernel`], bias: arrays[`${name}/bias`] });
  const inRows = (name) => {
    const { kernel, bias } = dense(name);
    return { rows: transposed(kernel, kernel.length / bias.length, bias.length), bias };
  };
  const blocks = Array.from({ length: packed.blocks }, (_, number) => {
    const block = `MixerBlock_${number}`;
    return {
      tokensNorm: norm(`${block}/LayerNorm_0`),
      tokens: { first: inRows(`${block}/token_mixing/Dense_0`), second: inRows(`${block}/token_mixing/Dense_1`) },
      channelsNorm: norm(`${block}/LayerNorm_1`),
      channels: { first: dense(`${block}/channel_mixing/Dense_0`), second: dense(`${block}/channel_mixing/Dense_1`) },
    };
  });
  return {
    size: packed.size,
    patch: packed.patch,
    channels: arrays["stem/bias"].length,
    stem: dense("stem"),
    blocks,
    norm: norm("pre_head_layer_norm"),
    head: dense("head"),
  };
}
