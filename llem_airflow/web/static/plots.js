// Pictures as SVG: few marks, whose labels are the work. Colours and fonts are those of the page around them.

import { h, useEffect, useRef, useState } from "./base.js";
import { cycles, logTicks, niceTicks, number, told } from "./format.js";
import { INK, LINE, MUTED, PAPER, SERIES, SHAPES } from "./parts.js";
import { savePicture } from "./save.js";

/** Width of an element, which a picture fills; measured again when it changes. */
export function useWidth(initial = 600) {
  const [element, ref] = useState(null);
  const [width, setWidth] = useState(initial);
  useEffect(() => {
    if (element === null) return undefined;
    const watch = new ResizeObserver(([entry]) => setWidth(Math.max(220, Math.floor(entry.contentRect.width))));
    watch.observe(element);
    return () => watch.disconnect();
  }, [element]);
  return [ref, width];
}

/** A linear scale, or one of logarithms where all values are positive and spread over more than a factor of 30; ticks are `[value, text]`. */
export function scaleFor(values, from, to, { zero = false, pad = 0.06 } = {}) {
  const known = values.filter(Number.isFinite);
  let low = Math.min(...known);
  let high = Math.max(...known);
  const log = !zero && low > 0 && high / low > 30;
  const there = log ? Math.log10 : (value) => value;
  if (zero) low = Math.min(0, low);
  let [a, b] = [there(low), there(high)];
  const wide = b - a > 1e-6 * Math.abs(b) ? b - a : 0; // less is rounding
  const margin = (wide || Math.abs(b) * 0.1 || 1) * pad;
  if (!(zero && low === 0)) a -= margin;
  b += margin;
  const at = (value) => from + ((there(value) - a) / (b - a)) * (to - from);
  const count = Math.abs(to - from) / (to < from ? 45 : 80); // lines of text may stand closer than words
  const ticks = log ? logTicks(a, b) : niceTicks(a, b, count);
  return { at, ticks, log };
}

// Airflow's style sheet sets the size of every element, so that an attribute has no effect.
export const TEXT = { fill: INK, style: { fontSize: "12px" } };
export const DIM = { fill: MUTED, style: { fontSize: "11px" } };

export function mark(shape, x, y, size, props) {
  const s = size;
  const paths = {
    square: `M${x - s},${y - s}h${2 * s}v${2 * s}h${-2 * s}Z`,
    triangle: `M${x},${y - s * 1.2}L${x + s * 1.1},${y + s}H${x - s * 1.1}Z`,
    down: `M${x},${y + s * 1.2}L${x + s * 1.1},${y - s}H${x - s * 1.1}Z`,
    diamond: `M${x},${y - s * 1.3}L${x + s * 1.3},${y}L${x},${y + s * 1.3}L${x - s * 1.3},${y}Z`,
    cross: `M${x - s},${y - s}L${x + s},${y + s}M${x - s},${y + s}L${x + s},${y - s}`,
    plus: `M${x - s},${y}H${x + s}M${x},${y - s}V${y + s}`,
  };
  return shape in paths ? h("path", { d: paths[shape], ...props }) : h("circle", { cx: x, cy: y, r: s, ...props });
}

const TINT = { baseline_bare: 1, baseline_context: 2, baseline_loaded: 3, load: 5, warmup: 4, measure: 0, cooldown: 6 };

/** Phases behind a series of time: a tint each, with its name where there is room. */
export function phaseBands(phases, { at, left, right, top, bottom, named }) {
  return phases
    .map((phase) => ({ ...phase, from: Math.max(left, at(phase.begin_s)), to: Math.min(right, at(phase.end_s)) }))
    .filter((phase) => phase.to > phase.from)
    .map((phase) =>
      h(
        "g",
        { key: `${phase.name}${phase.begin_s}` },
        h("rect", { x: phase.from, y: top, width: phase.to - phase.from, height: bottom - top, fill: SERIES[TINT[phase.name] ?? 6], fillOpacity: phase.name === "measure" ? 0.14 : 0.07 }),
        named && phase.to - phase.from > 6.5 * phase.name.length + 4 && h("text", { x: phase.from + 4, y: bottom - 5, ...DIM }, phase.name.replaceAll("_", " ")),
      ),
    );
}

/** What holds a plot: `watch` measures its width, and it can be saved, with a key to its groups. */
export function Picture({ watch, name, groups = [], children, ...rest }) {
  const box = useRef(null);
  const step = 18;
  return h(
    "div",
    { ref: watch, ...rest },
    h(
      "div",
      { ref: box, style: { background: PAPER } },
      children,
      groups.length > 1 &&
        h(
          "svg",
          { width: 200, height: groups.length * step, style: { display: "none" }, "aria-hidden": true },
          groups.map((group, place) => {
            const colour = SERIES[place % SERIES.length];
            const y = place * step + step / 2;
            return h("g", { key: group }, mark(SHAPES[place % SHAPES.length], 10, y, 4, { fill: colour, stroke: colour }), h("text", { x: 22, y: y + 4, ...TEXT }, String(group)));
          }),
        ),
    ),
    h(
      "div",
      { style: { display: "flex", gap: "0.5rem", justifyContent: "flex-end", fontSize: "0.7rem", color: MUTED } },
      ["svg", "png"].map((form) =>
        h("button", { key: form, type: "button", "aria-label": `Save as ${form.toUpperCase()}: ${name}`, onClick: () => savePicture(box.current, name, form), style: { cursor: "pointer", textDecoration: "underline" } }, form.toUpperCase()),
      ),
    ),
  );
}

/** The ticks of an upright axis, each with a line through the picture. */
export const Levels = ({ y, left, right }) =>
  y.ticks.map(([value, text]) =>
    h(
      "g",
      { key: value },
      h("line", { x1: left, x2: right, y1: y.at(value), y2: y.at(value), stroke: LINE }),
      h("text", { x: left - 6, y: y.at(value) + 4, textAnchor: "end", ...DIM }, text),
    ),
  );

function Axes({ box, x, y, xTitle, yTitle, xTicks }) {
  const { left, right, top, bottom } = box;
  const xs = xTicks ?? x.ticks;
  return h(
    "g",
    null,
    h(Levels, { y, left, right }),
    xs.map(([value, text], place) =>
      h(
        "g",
        { key: `x${place}` },
        h("line", { x1: x.at(value), x2: x.at(value), y1: bottom, y2: bottom + 4, stroke: LINE }),
        h("text", { x: x.at(value), y: bottom + 17, textAnchor: "middle", ...DIM }, text),
      ),
    ),
    h("line", { x1: left, x2: right, y1: bottom, y2: bottom, stroke: MUTED }),
    h("text", { x: (left + right) / 2, y: bottom + 34, textAnchor: "middle", ...TEXT }, xTitle),
    h("text", { x: left, y: top - 8, textAnchor: "start", ...TEXT }, yTitle),
  );
}

const along = (one, unit = "") => `${one.label}: ${number(one.y)}${one.low == null ? "" : ` (${number(one.low)} to ${number(one.high)})`}${unit}`;

/** Marks with their intervals over a factor; marks of a colour are joined. Points: `{x, y, low, high, group, label, key}`. */
export function FactorPlot({ points, xTitle, yTitle, groups, label }) {
  const [ref, width] = useWidth();
  const named = points.some((one) => typeof one.x !== "number");
  const levels = named ? [...new Set(points.map((one) => String(one.x)))] : null;
  const box = { left: 62, right: width - 14, top: 28, bottom: 250 };
  const ys = points.flatMap((one) => [one.y, one.low ?? one.y, one.high ?? one.y]);
  const y = scaleFor(ys, box.bottom, box.top);
  const values = points.map((one) => (named ? levels.indexOf(String(one.x)) : one.x));
  const x = scaleFor(values, box.left + 12, box.right - 12, { pad: named ? 0.25 : 0.05 });
  const distinct = [...new Set(values)].sort((a, b) => a - b);
  const room = Math.max(2, Math.floor((box.right - box.left) / 70));
  const fits = distinct.length <= room;
  const xTicks = named
    ? levels.map((text, place) => [place, text.length > 14 ? `${text.slice(0, 13)}…` : text])
    : fits
      ? told(distinct)
      : undefined;
  return h(
    Picture,
    { watch: ref, name: label, groups },
    h(
      "svg",
      { width, height: 296, role: "img", "aria-label": label },
      h(Axes, { box, x, y, xTitle, yTitle, xTicks }),
      groups.map((group, place) => {
        const own = points
          .map((one, index) => ({ ...one, at: values[index] }))
          .filter((one) => one.group === group)
          .sort((a, b) => a.at - b.at);
        const colour = SERIES[place % SERIES.length];
        const line = own.map((one) => `${x.at(one.at)},${y.at(one.y)}`).join(" ");
        return h(
          "g",
          { key: group },
          new Set(own.map((one) => one.at)).size === own.length &&
            h("polyline", { points: line, fill: "none", stroke: colour, strokeOpacity: 0.5 }),
          own.map((one) =>
            h(
              "g",
              { key: one.key },
              h("title", null, along(one)),
              one.low != null &&
                h("line", { x1: x.at(one.at), x2: x.at(one.at), y1: y.at(one.low), y2: y.at(one.high), stroke: colour, strokeWidth: 2 }),
              mark(SHAPES[place % SHAPES.length], x.at(one.at), y.at(one.y), 4.5, { fill: colour, stroke: colour, strokeWidth: 1.5 }),
            ),
          ),
        );
      }),
    ),
  );
}

export function Legend({ title, groups }) {
  if (groups.length < 2) return null;
  return h(
    "div",
    { style: { display: "flex", flexWrap: "wrap", gap: "0.2rem 1rem", fontSize: "0.8rem" } },
    h("span", { style: { color: MUTED } }, title),
    groups.map((group, place) =>
      h(
        "span",
        { key: group },
        h(
          "svg",
          { width: 14, height: 12, "aria-hidden": true, style: { display: "inline", verticalAlign: "-1px" } },
          mark(SHAPES[place % SHAPES.length], 7, 6, 4, { fill: SERIES[place % SERIES.length], stroke: SERIES[place % SERIES.length] }),
        ),
        ` ${group}`,
      ),
    ),
  );
}

/** Energy against speed, each point with its name and both intervals; the unbeaten ones are filled and joined. */
export function Pareto({ points, front, xTitle, yTitle, better, groups, label }) {
  const [ref, width] = useWidth();
  const height = 380;
  const box = { left: 62, right: width - 14, top: 28, bottom: height - 46 };
  const ends = (one, axis) => [one[axis], one[`${axis}Low`] ?? one[axis], one[`${axis}High`] ?? one[axis]];
  const x = scaleFor(points.flatMap((one) => ends(one, "x")), box.left + 10, box.right - 10);
  const y = scaleFor(points.flatMap((one) => ends(one, "y")), box.bottom - 8, box.top + 8);
  const best = points.filter((one) => front.has(one.key)).sort((a, b) => a.x - b.x);
  const names = placed(best, points.length <= 40 ? points.filter((one) => !front.has(one.key)) : [], x, y, box);
  return h(
    Picture,
    { watch: ref, name: label, groups },
    h(
      "svg",
      { width, height, role: "img", "aria-label": label },
      h(Axes, { box, x, y, xTitle: `${xTitle}  (better: ${better === "higher" ? "right" : "left"} and down)`, yTitle }),
      h("polyline", { points: best.map((one) => `${x.at(one.x)},${y.at(one.y)}`).join(" "), fill: "none", stroke: MUTED, strokeDasharray: "4 3" }),
      points.map((one) => {
        const place = Math.max(0, groups.indexOf(one.group));
        const colour = SERIES[place % SERIES.length];
        const filled = front.has(one.key);
        return h(
          "g",
          { key: one.key },
          h("title", null, `${one.label}: ${number(one.x)}; ${number(one.y)}`),
          one.xLow != null && h("line", { x1: x.at(one.xLow), x2: x.at(one.xHigh), y1: y.at(one.y), y2: y.at(one.y), stroke: colour, strokeOpacity: 0.7 }),
          one.yLow != null && h("line", { x1: x.at(one.x), x2: x.at(one.x), y1: y.at(one.yLow), y2: y.at(one.yHigh), stroke: colour, strokeOpacity: 0.7 }),
          mark(SHAPES[place % SHAPES.length], x.at(one.x), y.at(one.y), 5, { fill: filled ? colour : PAPER, stroke: colour, strokeWidth: 1.8 }),
        );
      }),
      names.map((one) => h("text", { key: one.key, x: one.at, y: one.down, textAnchor: one.anchor, fill: INK, style: { fontSize: "11px" } }, one.text)),
    ),
  );
}

const PLACES = [[9, 4, "start"], [-9, 4, "end"], [9, -9, "start"], [9, 17, "start"], [-9, -9, "end"], [-9, 17, "end"]];

/** Places for names beside their points where they cover nothing; what finds none is left to the tooltip, but for the best ones, which may cover marks. */
function placed(best, others, x, y, box) {
  const marks = [...best, ...others].map((one) => [x.at(one.x) - 5, y.at(one.y) - 5, x.at(one.x) + 5, y.at(one.y) + 5]);
  const names = [];
  const found = [];
  const put = (one, taken) => {
    const text = one.label.length > 42 ? `${one.label.slice(0, 41)}…` : one.label;
    const long = text.length * 6.1;
    const [px, py] = [x.at(one.x), y.at(one.y)];
    for (const [dx, dy, anchor] of PLACES) {
      const left = anchor === "start" ? px + dx : px + dx - long;
      const cover = [left, py + dy - 10, left + long, py + dy + 3];
      const inside = cover[0] >= box.left && cover[2] <= box.right && cover[1] >= box.top && cover[3] <= box.bottom;
      const free = taken.every((old) => cover[2] < old[0] || cover[0] > old[2] || cover[3] < old[1] || cover[1] > old[3]);
      if (inside && free) {
        names.push(cover);
        found.push({ key: one.key, at: px + dx, down: py + dy, anchor, text });
        return true;
      }
    }
    return false;
  };
  for (const one of best) put(one, [...marks, ...names]) || put(one, names);
  for (const one of others) put(one, [...marks, ...names]);
  return found;
}

/** Every cycle, the mean and the interval, one line an experiment. Rows: `{key, label, mean, low, high, n, values}`. */
export function Distribution({ rows, xTitle, label }) {
  const [ref, width] = useWidth();
  const names = Math.min(260, Math.max(90, width * 0.32));
  const step = 24;
  const height = rows.length * step + 54;
  const box = { left: names, right: width - 14, bottom: rows.length * step + 8 };
  const every = rows.flatMap((row) => [row.mean, row.low ?? row.mean, row.high ?? row.mean, ...row.values.map((one) => one.value)]);
  const x = scaleFor(every, box.left + 8, box.right - 8);
  const letters = Math.max(8, Math.floor(names / 6.4) - 2);
  return h(
    Picture,
    { watch: ref, name: label },
    h(
      "svg",
      { width, height, role: "img", "aria-label": label },
      x.ticks.map(([value, text]) =>
        h(
          "g",
          { key: value },
          h("line", { x1: x.at(value), x2: x.at(value), y1: 4, y2: box.bottom, stroke: LINE }),
          h("text", { x: x.at(value), y: box.bottom + 16, textAnchor: "middle", ...DIM }, text),
        ),
      ),
      h("text", { x: (box.left + box.right) / 2, y: box.bottom + 34, textAnchor: "middle", ...TEXT }, xTitle),
      rows.map((row, place) => {
        const middle = place * step + step / 2 + 4;
        const text = row.label.length > letters ? `${row.label.slice(0, letters - 1)}…` : row.label;
        return h(
          "g",
          { key: row.key },
          h("title", null, `${row.label}: ${number(row.mean)}${row.low == null ? "" : ` (${number(row.low)} to ${number(row.high)})`}, ${cycles(row.n, row.hosts)}`),
          h("text", { x: box.left - 8, y: middle + 4, textAnchor: "end", ...TEXT }, text),
          row.low != null && h("line", { x1: x.at(row.low), x2: x.at(row.high), y1: middle, y2: middle, stroke: SERIES[0], strokeWidth: 3, strokeOpacity: 0.6 }),
          row.values.map((one) =>
            mark(one.doubtful ? "cross" : "circle", x.at(one.value), middle, 3, {
              key: one.cycle,
              fill: one.doubtful ? "none" : MUTED,
              stroke: one.doubtful ? SERIES[1] : MUTED,
              strokeWidth: one.doubtful ? 1.5 : 0.5,
            }),
          ),
          h("line", { x1: x.at(row.mean), x2: x.at(row.mean), y1: middle - 8, y2: middle + 8, stroke: SERIES[0], strokeWidth: 2 }),
        );
      }),
    ),
  );
}

/** The last runs in a line, a bar at each place where a new level began; its text says what a screen reader cannot see. */
export function Spark({ values, changes = [], label }) {
  if (values.length < 2) return null;
  const [width, height] = [110, 26];
  const y = scaleFor(values, height - 3, 3, { pad: 0.02 });
  const at = (place) => 3 + (place / (values.length - 1)) * (width - 6);
  const last = values.length - 1;
  return h(
    "svg",
    { width, height, role: "img", "aria-label": label },
    h("title", null, label),
    changes.map((place) => h("line", { key: place, x1: at(place), x2: at(place), y1: 1, y2: height - 1, stroke: SERIES[1], strokeWidth: 2, "data-change": place })),
    h("polyline", { points: values.map((value, place) => `${at(place)},${y.at(value)}`).join(" "), fill: "none", stroke: SERIES[0], strokeWidth: 1.5 }),
    h("circle", { cx: at(last), cy: y.at(values[last]), r: 2.5, fill: SERIES[0] }),
  );
}
