// A plot of the last minutes as SVG: it takes its colours from the style sheet and scales with the page.

const SPACE = "http://www.w3.org/2000/svg";
const WINDOW_S = 300;
const MARGIN = { left: 46, right: 8, top: 8, bottom: 18 };
const LINES = 3;

/** Points in time, `value` null where nothing is known; older ones than the window are forgotten. */
export class Series {
  constructor() {
    this.points = [];
  }

  add(time, value) {
    this.points.push({ time, value });
    while (this.points[0].time < time - WINDOW_S * 1000) this.points.shift();
  }

  get largest() {
    return this.points.reduce((most, point) => Math.max(most, point.value ?? 0), 0);
  }
}

function draw(parent, tag, attributes, text) {
  const made = document.createElementNS(SPACE, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

/** The smallest of 1, 2, 5, 10, … that `LINES` steps of reach `value`. */
function step(value) {
  const wanted = value / LINES;
  const power = 10 ** Math.floor(Math.log10(wanted));
  return [1, 2, 5, 10].find((factor) => factor * power >= wanted * (1 - 1e-9)) * power;
}

export class Plot {
  /** Settings: `title`; `smallest`, what the axis reaches at least; `format`, which writes a value. */
  constructor(svg, series, settings) {
    Object.assign(this, { svg, series, pointer: null, now: 0 }, settings);
    svg.addEventListener("pointermove", (event) => this.point(event.offsetX));
    svg.addEventListener("pointerleave", () => this.point(null));
    new ResizeObserver(() => this.render()).observe(svg);
  }

  point(x) {
    this.pointer = x;
    this.render();
  }

  /** Draw the series as it is at `now` (ms, as its points have it). */
  render(now = this.now) {
    this.now = now;
    const { clientWidth: width, clientHeight: height } = this.svg;
    if (!now || !width) return;
    const gap = step(Math.max(this.series.largest, this.smallest));
    const right = width - MARGIN.right;
    const bottom = height - MARGIN.bottom;
    const x = (time) => right - ((now - time) / (WINDOW_S * 1000)) * (right - MARGIN.left);
    const y = (value) => bottom - (value / (gap * LINES)) * (bottom - MARGIN.top);

    const group = document.createElementNS(SPACE, "g");
    for (let line = 0; line <= LINES; line += 1) {
      const at = Math.round(y(line * gap)) + 0.5;
      draw(group, "line", { class: "grid", x1: MARGIN.left, x2: right, y1: at, y2: at });
      draw(group, "text", { x: MARGIN.left - 6, y: at + 3.5, "text-anchor": "end" }, this.format(line * gap));
    }
    draw(group, "text", { x: MARGIN.left, y: height - 4 }, "5 min ago");
    draw(group, "text", { x: right, y: height - 4, "text-anchor": "end" }, "now");
    for (const run of this.runs()) {
      const shape = run.map((point) => `${x(point.time).toFixed(1)},${y(point.value).toFixed(1)}`).join("L");
      const [first, last] = [x(run[0].time).toFixed(1), x(run.at(-1).time).toFixed(1)];
      draw(group, "path", { class: "area", d: `M${first},${bottom}L${shape}L${last},${bottom}Z` });
      draw(group, "path", { class: "curve", d: `M${shape}` });
    }
    this.mark(group, x, y, bottom);
    this.svg.replaceChildren(group);
    this.svg.setAttribute("aria-label", this.describe());
  }

  /** The points between gaps. */
  runs() {
    const runs = [[]];
    for (const point of this.series.points) {
      if (point.value === null) runs.push([]);
      else runs.at(-1).push(point);
    }
    return runs.filter((run) => run.length);
  }

  mark(group, x, y, bottom) {
    if (this.pointer === null) return;
    const known = this.series.points.filter((point) => point.value !== null);
    if (!known.length) return;
    const away = (point) => Math.abs(x(point.time) - this.pointer);
    const nearest = known.reduce((best, point) => (away(point) < away(best) ? point : best));
    const at = x(nearest.time);
    draw(group, "line", { class: "pointer", x1: at, x2: at, y1: MARGIN.top, y2: bottom });
    draw(group, "circle", { class: "pointer", cx: at, cy: y(nearest.value), r: 3 });
    const text = `${this.format(nearest.value)}, ${Math.round((this.now - nearest.time) / 1000)} s ago`;
    const left = at > (MARGIN.left + this.svg.clientWidth) / 2;
    const place = { class: "value", x: at + (left ? -6 : 6), y: MARGIN.top + 10 };
    draw(group, "text", { ...place, "text-anchor": left ? "end" : "start" }, text);
  }

  describe() {
    const last = this.series.points.at(-1);
    const present = last && last.value !== null ? this.format(last.value) : "unknown";
    return `${this.title}: now ${present}, at most ${this.format(this.series.largest)} in the last five minutes`;
  }
}
