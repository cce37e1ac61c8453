// The part of the page in which the model runs: a picture goes through the blocks, step by step.

const TOP_CLASSES = 5;

/** Shows the model and lets the visitor change picture, step, unit and the order of patches. Returns the view. */
function modelView(packed, samples) {
  const model = unpacked(packed);
  const grid = packed.size / packed.patch;
  const at = (id) => document.getElementById(id);
  const unmoved = Array.from({ length: grid * grid }, (_, token) => token);
  const view = {
    model, picture: null, order: unmoved, patchesMoved: false, weightsMoved: false, result: null, unmovedLogits: null,
    unit: null,
  };

  /** Runs the model on the picture as it is now, and shows everything anew. */
  function run() {
    const started = performance.now();
    view.result = forward(shownModel(), view.shownPicture());
    const milliseconds = performance.now() - started;
    if (!view.patchesMoved && !view.weightsMoved) view.unmovedLogits = view.result.guesses.at(-1);
    at("speed").textContent = `${milliseconds.toFixed(0)} ms for this picture`;
    drawPicture();
    showStep();
    showAnswer();
    showMoves();
  }

  /** The model, with its weights moved if they are. */
  const shownModel = () => (view.weightsMoved ? withWeightsMoved(model, view.order) : model);

  view.shownPicture = () =>
    view.patchesMoved ? withPatchesMoved(view.picture, packed.size, packed.patch, view.order) : view.picture;

  // ------------------------------------------------------------------------------------------------------- pictures

  /** Takes a picture, size x size x 3 numbers from 0 to 255, and what is known of it. */
  view.take = (picture, label) => {
    view.picture = picture;
    at("label").textContent = label;
    view.patchesMoved = view.weightsMoved = false;
    run();
  };

  function drawPicture() {
    const canvas = at("picture");
    canvas.width = canvas.height = packed.size;
    const rgba = new ImageData(packed.size, packed.size);
    view.shownPicture().forEach((value, i) => (rgba.data[Math.floor(i / 3) * 4 + (i % 3)] = value));
    for (let pixel = 0; pixel < packed.size ** 2; pixel++) rgba.data[pixel * 4 + 3] = 255;
    canvas.getContext("2d").putImageData(rgba, 0, 0);
    drawOverlay(at("overlay"), view.unit === null ? new Float32Array(grid * grid) : unitWeights(view.unit));
  }

  samples.pictures.forEach((source, number) => {
    const button = document.createElement("button");
    button.className = "thumbnail";
    button.title = button.ariaLabel = `picture ${number + 1}: ${samples.labels[number]}`;
    const image = Object.assign(new Image(), { src: source, alt: "" });
    button.append(image);
    button.onclick = () => takeSample(number);
    at("thumbnails").append(button);
  });

  async function takeSample(number) {
    const picture = await pixelsOf(samples.pictures[number], packed.size);
    [...at("thumbnails").children].forEach((button, i) => (button.ariaPressed = i === number));
    view.take(picture, `Picture ${number + 1} of ${samples.pictures.length}: ${samples.labels[number] || "without a label"}.`);
  }

  /** Says where a browser turns a file of this type otherwise than the run: what Chromium 150 does. */
  function turnedOtherwise(type) {
    if (packed.exif !== "ignore") {
      return type === "image/webp" ? " The run turns a WebP by its EXIF tag, which Chromium does not." : "";
    }
    const asItIs = ["image/webp", "image/gif", "image/bmp"].includes(type); // the latter two have no such tag
    return asItIs ? "" : " A browser turns it as its EXIF tag says, which this run does not.";
  }

  async function takeFile(file) {
    if (!file) return;
    try {
      const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" }); // a run reads no colour profile
      const { picture, transparent } = cropped(bitmap, packed);
      [...at("thumbnails").children].forEach((button) => (button.ariaPressed = false));
      const resized =
        Math.min(bitmap.width, bitmap.height) < packed.resize
          ? "enlarged by the browser, more smoothly than by the evaluation: pixels may differ by some ten levels of 255 on average"
          : "resized by the browser; the evaluation's own resizing differs a little";
      const blackened =
        transparent && packed.background === "black"
          ? " It is transparent in places: here those are black, while the run keeps the colours under them."
          : "";
      view.take(picture, `${file.name}, ${resized}.${turnedOtherwise(file.type)}${blackened}`);
    } catch {
      at("label").textContent =
        `${file.name} is not a picture that this browser can read; give a JPEG or a PNG. ` +
        "The picture and the answer are still those of before.";
    }
  }

  at("file").onchange = (event) => takeFile(event.target.files[0]);
  for (const name of ["dragover", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault(); // a browser would leave the page for the picture
      if (name === "drop") takeFile(event.dataTransfer.files[0]);
    });
  }

  // ---------------------------------------------------------------------------------------------------------- steps

  const lastStep = 2 * model.blocks.length;
  at("step").max = lastStep;
  at("step").value = lastStep;
  at("step").oninput = showStep;
  at("channel").max = model.channels - 1;
  at("channel").oninput = showStep;
  at("what").onchange = showStep;
  at("back").onclick = () => moveStep(-1);
  at("forward").onclick = () => moveStep(1);

  function moveStep(by) {
    at("step").value = Number(at("step").value) + by;
    showStep();
  }

  /** The block of the step that is shown: the stem belongs to the first. */
  const shownBlock = () => Math.max(Math.ceil(Number(at("step").value) / 2) - 1, 0);

  function showStep() {
    const step = Number(at("step").value);
    const { name, tokens } = view.result.stages[step];
    const ofChannel = at("what").value === "channel";
    at("channel").disabled = !ofChannel;
    at("channel-number").textContent = ofChannel ? at("channel").value : "";
    const values = ofChannel ? channelOf(tokens, Number(at("channel").value)) : sizes(tokens);
    drawGrid(at("map"), values);
    at("step-name").textContent = name;
    at("step").setAttribute("aria-valuetext", name);
    at("map").ariaLabel = `tokens ${name}: from ${Math.min(...values).toFixed(2)} to ${Math.max(...values).toFixed(2)}`;
    at("map-range").textContent = `${Math.min(...values).toFixed(2)} to ${Math.max(...values).toFixed(2)}`;
    at("back").disabled = step === 0;
    at("forward").disabled = step === lastStep;
    showGuesses(Math.floor(step / 2));
    showUnits();
  }

  /** The size of each token: the root of the mean square over its channels. */
  function sizes(tokens) {
    const result = new Float32Array(grid * grid);
    tokens.forEach((value, i) => (result[Math.floor(i / model.channels)] += value ** 2 / model.channels));
    return result.map(Math.sqrt);
  }

  const channelOf = (tokens, channel) => unmoved.map((token) => tokens[token * model.channels + channel]);

  // -------------------------------------------------------------------------------------------------------- answers

  const named = (logits) =>
    ranked(logits, packed.probabilities).map(({ number, share }) => ({ name: packed.classes[number], share }));

  /** Shows the first guess of the head after each block; the row of the step that is shown is marked. */
  function showGuesses(blocks) {
    at("guesses").replaceChildren(
      ...view.result.guesses.map((logits, number) => {
        const [first] = named(logits);
        const row = barRow(number ? `block ${number - 1}` : "stem", first.name, first.share);
        if (number === blocks) row.setAttribute("aria-current", "step");
        return row;
      }),
    );
  }

  function showAnswer() {
    const rows = named(view.result.guesses.at(-1)).slice(0, TOP_CLASSES);
    at("answer").replaceChildren(...rows.map(({ name, share }) => barRow(name, percent(share), share)));
  }

  // ---------------------------------------------------------------------------------------------------------- units

  function unitWeights({ block, unit }) {
    const { first } = shownModel().blocks[block].tokens;
    return first.rows.subarray(unit * grid * grid, (unit + 1) * grid * grid);
  }

  let unitsShown = "";

  /** Shows the token-mixing units of the block whose step is shown. */
  function showUnits() {
    const block = shownBlock();
    const shown = `${block} ${view.weightsMoved} ${view.order}`;
    if (shown === unitsShown) return;
    unitsShown = shown;
    select(null);
    at("units-block").textContent = block;
    const buttons = packed.units[block].map((unit) => {
      const button = document.createElement("button");
      button.className = "unit";
      button.ariaLabel = `unit ${unit} of block ${block}`;
      const canvas = document.createElement("canvas");
      drawGrid(canvas, unitWeights({ block, unit }));
      button.append(canvas);
      button.onmouseenter = button.onfocus = button.onclick = () => select({ block, unit });
      button.onmouseleave = button.onblur = () => select(null);
      return button;
    });
    at("units").replaceChildren(...buttons);
  }

  function select(unit) {
    view.unit = unit;
    at("unit-name").textContent = unit
      ? `Unit ${unit.unit} of block ${unit.block} adds up the red patches and takes away the blue ones.`
      : "Point at a unit to see over the picture where it looks.";
    drawPicture();
  }

  // --------------------------------------------------------------------------------------------------------- shuffle

  at("move-patches").onclick = () => {
    view.order = shuffled(unmoved);
    view.patchesMoved = true;
    view.weightsMoved = false;
    run();
  };
  at("move-weights").onclick = () => {
    view.weightsMoved = true;
    run();
  };
  at("put-back").onclick = () => {
    view.patchesMoved = view.weightsMoved = false;
    run();
  };

  function showMoves() {
    at("move-weights").disabled = !view.patchesMoved || view.weightsMoved;
    at("put-back").disabled = !view.patchesMoved;
    const logits = view.result.guesses.at(-1);
    const difference = Math.max(...logits.map((logit, i) => Math.abs(logit - view.unmovedLogits[i])));
    const [before] = named(view.unmovedLogits);
    const [now] = named(logits);
    const text = (guess) => `${guess.name}, ${percent(guess.share)}`;
    at("moves").textContent = !view.patchesMoved
      ? "The patches are where they belong."
      : view.weightsMoved
        ? `The weights are shuffled like the patches: the answer is ${text(now)} again. ` +
          `The logits differ by about ${difference.toExponential(0)} at most, which is rounding.`
        : `The patches are shuffled: the answer is ${text(now)}; it was ${text(before)}. ` +
          `The logits differ by up to ${difference.toPrecision(2)}.`;
  }

  // ----------------------------------------------------------------------------------------------------------- check

  /** Returns the logits for one of the pictures of the page. */
  view.logitsOf = async (number) => {
    const picture = await pixelsOf(samples.pictures[number], packed.size);
    return [...forward(model, picture).guesses.at(-1)];
  };

  at("check").onclick = async () => {
    at("check").disabled = true;
    let largest = 0;
    for (let number = 0; number < samples.pictures.length; number++) {
      const logits = await view.logitsOf(number);
      largest = Math.max(largest, ...logits.map((logit, i) => Math.abs(logit - packed.logits[number][i])));
      at("checked").textContent = `${number + 1} of ${samples.pictures.length} pictures ...`;
      await new Promise((resolve) => setTimeout(resolve));
    }
    at("checked").textContent =
      `On ${samples.pictures.length} pictures, the logits differ from JAX's by about ${largest.toExponential(1)} at most.`;
    at("check").disabled = false;
  };

  takeSample(0);
  return view;
}
