// Parallel coordinates: what a sweep varied and what came of it, one line an experiment.

import { h, UI, useAddress } from "./base.js";
import { counted, natural, quantity, scaleOf, short, shortKey } from "./format.js";
import { INK, LINE, Muted, MUTED, SERIES } from "./parts.js";
import { DIM, scaleFor, TEXT, useWidth } from "./plots.js";

const chosen = (text) => new Map(text.split("~~").filter(Boolean).map((one) => one.split("::")));

/** Axes: each factor, then the metric. A level that is picked keeps only the lines through it; the address has them. */
export function Parallel({ data, metric }) {
  const [picked, setPicked] = useAddress("through");
  const [ref, width] = useWidth(800);
  const known = data.experiments.filter((one) => one.metrics[metric.name]);
  const picks = chosen(picked);
  const factors = data.factors.map((key) => ({ key, title: shortKey(key), levels: [...new Set(known.map((one) => short(one.factors[key])))].sort(natural) }));
  const values = known.map((one) => one.metrics[metric.name].mean);
  const scale = scaleOf(metric, Math.max(...values.map(Math.abs), 0));
  const box = { left: 70, right: width - 110, top: 40, bottom: 330 };
  const step = (box.right - box.left) / Math.max(1, factors.length);
  const at = (place) => box.left + place * step;
  const level = (axis, value) => (axis.levels.length === 1 ? (box.top + box.bottom) / 2 : box.bottom - 10 - (axis.levels.indexOf(value) / (axis.levels.length - 1)) * (box.bottom - box.top - 20));
  const y = scaleFor(values.map((value) => value * scale.factor), box.bottom, box.top);
  const ranked = [...values].sort((a, b) => a - b);
  const good = (value) => {
    const share = ranked.length > 1 ? ranked.indexOf(value) / (ranked.length - 1) : 0;
    return metric.better === "higher" ? 1 - share : share;
  };
  const through = (one) => [...picks].every(([key, value]) => !data.factors.includes(key) || short(one.factors[key]) === value);
  const inside = known.filter(through);
  const pick = (key, value) => {
    const next = new Map(picks);
    if (next.get(key) === value) next.delete(key);
    else next.set(key, value);
    setPicked([...next].map((one) => one.join("::")).join("~~"));
  };
  const line = (one) => [...factors.map((axis, place) => `${at(place)},${level(axis, short(one.factors[axis.key]))}`), `${at(factors.length)},${y.at(one.metrics[metric.name].mean * scale.factor)}`].join(" ");
  return h(
    UI.Box,
    { "data-testid": "llem-parallel" },
    h(
      "div",
      { ref, style: { overflowX: "auto" } },
      h(
        "svg",
        { width, height: box.bottom + 16, role: "group", "aria-label": `${metric.label} of ${known.length} experiments by ${factors.map((axis) => axis.title).join(", ")}; the table below has the numbers` },
        known
          .filter((one) => !through(one))
          .map((one) => h("polyline", { key: one.id, points: line(one), fill: "none", stroke: LINE, strokeWidth: 1 })),
        inside.map((one) => {
          const value = one.metrics[metric.name].mean;
          return h(
            "polyline",
            { key: one.id, "data-experiment": one.id, points: line(one), fill: "none", stroke: `color-mix(in srgb, ${SERIES[1]} ${Math.round(100 * good(value))}%, ${SERIES[0]})`, strokeWidth: 2, strokeOpacity: 0.8 },
            h("title", null, `${one.label}: ${quantity(metric, value, one.energy_kind)}`),
          );
        }),
        factors.map((axis, place) =>
          h(
            "g",
            { key: axis.key },
            h("line", { x1: at(place), x2: at(place), y1: box.top, y2: box.bottom, stroke: MUTED }),
            h("text", { x: at(place), y: 16 + (place % 2) * 14, textAnchor: "middle", ...TEXT }, axis.title),
            axis.levels.map((value) => h(Level, { key: value, left: at(place), top: level(axis, value), value, on: picks.get(axis.key) === value, name: `${axis.title} ${value}`, act: () => pick(axis.key, value) })),
          ),
        ),
        h("line", { x1: at(factors.length), x2: at(factors.length), y1: box.top, y2: box.bottom, stroke: MUTED }),
        h("text", { x: width - 4, y: 16 + (factors.length % 2) * 14, textAnchor: "end", ...TEXT }, `${metric.label}, ${scale.unit}`),
        y.ticks.map(([value, text]) => h("text", { key: value, x: at(factors.length) + 8, y: y.at(value) + 4, ...DIM }, text)),
      ),
    ),
    h(Muted, null, `${inside.length === known.length ? counted(known.length, "experiment") : `${inside.length} of ${counted(known.length, "experiment")}`}. A line is an experiment, from blue (the best ${metric.label}) to orange (the worst). A level that is picked keeps only the lines through it; picked again, all come back.`),
  );
}

function Level({ left, top, value, on, name, act }) {
  const key = (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      act();
    }
  };
  return h(
    "g",
    { role: "button", tabIndex: 0, "aria-pressed": on, "aria-label": name, onClick: act, onKeyDown: key, style: { cursor: "pointer" } },
    h("circle", { cx: left, cy: top, r: on ? 6 : 4, fill: on ? SERIES[0] : INK }),
    h("text", { x: left + 8, y: top + 4, fill: INK, stroke: "var(--chakra-colors-bg)", strokeWidth: 3, paintOrder: "stroke", style: { fontSize: "11px", fontWeight: on ? 700 : 400 } }, value.length > 18 ? `${value.slice(0, 17)}…` : value),
  );
}
