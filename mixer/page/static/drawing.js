// Small drawings: grids of patches, bars, and pixels of pictures.

const RED = [178, 24, 43];
const BLUE = [33, 102, 172];
const WHITE = 247;

/** Draws a value for each patch: white at zero, red above and blue below; if all are above zero, white at the least. */
function drawGrid(canvas, values) {
  const least = Math.min(...values);
  const zero = least > 0 ? least : 0;
  const limit = Math.max(...values.map((value) => Math.abs(value - zero))) || 1;
  draw(canvas, values, (value) => {
    const share = Math.abs(value - zero) / limit;
    return [...(value > zero ? RED : BLUE).map((colour) => WHITE + (colour - WHITE) * share), 255];
  });
}

/** Draws a value for each patch over what lies below: clear at zero, red above and blue below. */
function drawOverlay(canvas, values) {
  const limit = Math.max(...values.map(Math.abs)) || 1;
  draw(canvas, values, (value) => [...(value > 0 ? RED : BLUE), (190 * Math.abs(value)) / limit]);
}

function draw(canvas, values, colourOf) {
  const grid = Math.sqrt(values.length);
  canvas.width = canvas.height = grid;
  const image = new ImageData(grid, grid);
  values.forEach((value, i) => image.data.set(colourOf(value), i * 4));
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Returns a row of a list: a name, a text, and a bar for a share from 0 to 1. */
function barRow(name, text, share) {
  const row = document.createElement("li");
  const bar = Object.assign(document.createElement("span"), { className: "bar" });
  bar.style.setProperty("--share", share);
  row.append(
    Object.assign(document.createElement("span"), { className: "name", textContent: name }),
    bar,
    Object.assign(document.createElement("span"), { className: "text", textContent: text }),
  );
  row.title = `${name}: ${text} (${percent(share)})`;
  return row;
}

const percent = (share, decimals = 1) => `${(100 * share).toFixed(decimals)}%`;

/** Returns the pixels of a canvas without their opacity. */
function pixels(context, size) {
  const { data } = context.getImageData(0, 0, size, size);
  return Uint8ClampedArray.from({ length: size * size * 3 }, (_, i) => data[Math.floor(i / 3) * 4 + (i % 3)]);
}

function canvasContext(size) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = size;
  return canvas.getContext("2d", { willReadFrequently: true });
}

/** Returns the pixels of a picture, given as a data URL, which has the right size already. */
async function pixelsOf(source, size) {
  const image = Object.assign(new Image(), { src: source });
  await image.decode();
  const context = canvasContext(size);
  context.drawImage(image, 0, 0);
  return pixels(context, size);
}

/** Returns the pixels of a picture of any size, resized and cropped as in the evaluation, and whether it is transparent. */
function cropped(bitmap, { size, resize, crop, background }) {
  const context = canvasContext(size);
  context.imageSmoothingQuality = "high";
  const scale = resize / Math.min(bitmap.width, bitmap.height);
  const resized = (side) => (crop === "resize_square" ? resize : Math.round(side * scale));
  const [width, height] = [resized(bitmap.width), resized(bitmap.height)];
  const before = (side) => -Math.floor((side - size) / 2); // whole pixels, as in the evaluation
  const draw = () => context.drawImage(bitmap, before(width), before(height), width, height);
  draw();
  const transparent = context.getImageData(0, 0, size, size).data.some((value, i) => i % 4 === 3 && value < 255);
  context.fillStyle = background;
  context.fillRect(0, 0, size, size);
  draw();
  return { picture: pixels(context, size), transparent };
}

/** Returns the items in random order. */
function shuffled(items) {
  const result = [...items];
  for (let last = result.length - 1; last > 0; last--) {
    const other = Math.floor(Math.random() * (last + 1));
    [result[last], result[other]] = [result[other], result[last]];
  }
  return result;
}
