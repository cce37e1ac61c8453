// Curves, drawn by uPlot. The legend below a chart shows the values at the pointer, or at the arrow keys' step.

const CHART_HEIGHT = 220;
const WHOLE = Array.from({ length: 48 }, (_, i) => [1, 2, 5][i % 3] * 10 ** Math.floor(i / 3)); // between ticks

/** Draws a chart into each element of the class `chart`; `charts` has what they show, in their order. */
function drawCharts(charts) {
  const drawn = [...document.querySelectorAll(".chart")].map((place, number) => drawChart(place, charts[number]));
  const redraw = () => drawn.forEach((chart) => chart.resize());
  addEventListener("resize", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    drawn.forEach((chart) => chart.remake());
  });
}

/** Returns how many decimals tell apart the multiples of a distance: 2 of 0.25. */
function decimalsOf(distance) {
  let decimals = 0;
  for (let x = distance; Math.abs(x - Math.round(x)) > 1e-6 * x; x *= 10) decimals++;
  return decimals;
}

/** Returns a number with four digits, or as many as tell it apart from another at a distance. */
function numeral(value, distance) {
  return Number(value.toPrecision(Math.max(Math.ceil(Math.log10(Math.abs(value) / distance)) + 2, 4)));
}

/** Returns the range of an axis of shares: uPlot's own, which leaves room above, but no more than 100% for shares. */
function rangeOfShares(_, least, most) {
  if (least == null) return [null, null];
  const [from, to] = uPlot.rangeNum(least, most, 0.1, true);
  return [from, most <= 1 ? Math.min(to, 1) : to];
}

/**
 * Draws one chart.
 *
 * @param place the element.
 * @param chart x, the name of the horizontal axis; log, whether the vertical one is logarithmic; percent; and curves:
 *   name, x and y, whose values may be null.
 */
function drawChart(place, chart) {
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  let distance = Infinity; // between the ticks of the vertical axis
  const decimals = () => decimalsOf(100 * distance);
  const tick = (value) => (value == null ? "" : chart.percent ? percent(value, decimals()) : numeral(value, distance));
  const shown = (value) =>
    value == null ? "" : chart.percent ? percent(value, decimals() + 1) : numeral(value, distance / 10);
  const width = () => Math.max(place.clientWidth, 200);
  const make = () => {
    const axis = { stroke: style("--text"), grid: { stroke: style("--line"), width: 1 }, ticks: { show: false } };
    return new uPlot(
      {
        width: width(),
        height: CHART_HEIGHT,
        scales: {
          x: { time: false },
          y: { distr: chart.log ? 3 : 1, range: chart.percent ? rangeOfShares : undefined },
        },
        cursor: { dataIdx: (_plot, _curve, step) => step }, // no value of another step, where a curve has none here
        axes: [
          { ...axis, label: chart.x, labelSize: 16, size: 36, incrs: WHOLE },
          {
            ...axis, size: 56,
            values: (_plot, ticks, _axis, _space, found) => {
              if (!chart.log) distance = found;
              return ticks.map(tick);
            },
          },
        ],
        series: [
          { label: chart.x, value: (_, value) => value ?? "" },
          ...chart.curves.map((curve, number) => ({
            label: curve.name, stroke: style(`--curve-${(number % 6) + 1}`), width: 2, spanGaps: true,
            dash: number >= 6 ? [6, 4] : undefined, points: { show: curve.x.length < 40, size: 5 },
            value: (_, value) => shown(value),
          })),
        ],
      },
      uPlot.join(chart.curves.map(({ x, y }) => [x, y])),
      place,
    );
  };
  let plot = make();
  place.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const last = plot.data[0].length - 1;
    const step = Math.min(Math.max((plot.cursor.idx ?? (by > 0 ? -1 : last + 1)) + by, 0), last);
    plot.setCursor({ left: plot.valToPos(plot.data[0][step], "x"), top: CHART_HEIGHT / 3 });
  });
  return {
    resize: () => plot.setSize({ width: width(), height: CHART_HEIGHT }),
    remake: () => {
      plot.destroy();
      plot = make();
    },
  };
}
