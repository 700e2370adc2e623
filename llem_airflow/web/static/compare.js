// The comparison of runs and releases: a heat map of experiments x candidates; each row opens to what lies behind it.

import { energyPage, Fragment, h, Link, UI, useAddress, useApi, useChange } from "./base.js";
import { change, cycles, number, quantity, short, when } from "./format.js";
import { Choose, INK, LINE, Loading, Muted, MUTED, Notice, Section, SERIES, signed, UNDERLINED, Verbatim } from "./parts.js";
import { DIM, Legend, Levels, scaleFor, TEXT, useWidth } from "./plots.js";

const MOST = 12;
const list = (text) => text.split("~~").filter(Boolean);

export function Comparison({ dagId }) {
  const [study] = useAddress("study");
  const [baseline] = useAddress("baseline");
  const [baselineDag] = useAddress("of");
  const [candidates] = useAddress("candidates");
  const [metricName] = useAddress("metric");
  const [ignored] = useAddress("ignore");
  const [open, setOpen] = useAddress("open");
  const asked = [
    ["dag_id", dagId],
    ...(study ? [["study", study]] : []),
    ...(baseline ? [["baseline", baseline]] : []),
    ...(baselineDag ? [["baseline_dag", baselineDag]] : []),
    ...list(candidates).map((one) => ["candidate", one]),
    ...(metricName ? [["metric", metricName]] : []),
    ...list(ignored).map((one) => ["ignore", one]),
  ];
  const { data, error } = useApi("compare", asked);
  const toAddress = useChange();
  if (error)
    return h(
      Notice,
      { kind: "error", title: "These runs cannot be compared" },
      h(Verbatim, { label: "What is wrong" }, error),
      h(UI.Button, { size: "xs", variant: "outline", mt: 2, onClick: () => toAddress({ study: null, baseline: null, of: null, candidates: null, metric: null, ignore: null, open: null }) }, "Choose again"),
    );
  if (!data) return h(Loading);
  if (!data.rows)
    return h(
      Notice,
      { title: "There are no two aggregated runs of this DAG to compare yet." },
      h(Muted, null, "Two runs of a study, or two model releases, can be compared as soon as both were aggregated; the tab Runs tells how far each one is."),
    );
  return h(
    UI.Box,
    { "data-testid": "llem-comparison" },
    h(Choices, { data, dagId }),
    data.notes.map((text) => h(Notice, { key: text, kind: "warning", title: text })),
    data.rows.some((row) => row.cells.some((one) => one?.estimate)) && data.metric.energy && h(Notice, { title: "Energies here are estimates: no power meter was read." }),
    data.rows.length ? h(HeatMap, { data, open, setOpen, dagId }) : h(Notice, { title: "The runs have no experiment in common." }),
    h(Alone, { data }),
  );
}

const nameOf = (run) => (run.release ? `${run.release} (${when(run.started_epoch_ns)})` : `${when(run.started_epoch_ns)}, ${run.run_id}`);

function Choices({ data, dagId }) {
  const toAddress = useChange();
  const options = [
    ...Object.entries(data.choices.releases).map(([name, run]) => [`@${name}`, `release ${name} (${when(run.started_epoch_ns)})`]),
    ...data.choices.runs.map((run) => [run.run_id, `${when(run.started_epoch_ns)}${run.release ? `, ${run.release}` : ""}, ${run.run_id}`]),
  ];
  const known = new Set(options.map(([key]) => key));
  const foreign = data.names.of !== dagId || !known.has(data.names.baseline);
  const other = foreign ? [[data.names.baseline, `${nameOf(data.baseline)}${data.names.of === dagId ? "" : ` of ${data.names.of}`}`]] : [];
  const set = (names) => toAddress({ candidates: names.join("~~"), baseline: data.names.baseline, of: data.names.of === dagId ? null : data.names.of, open: null });
  const conditions = [...new Set([...data.ignored, ...data.rows.flatMap((row) => row.cells.flatMap((one) => Object.keys(one?.differences ?? {})))])].sort();
  const chosen = data.names.candidates;
  return h(
    UI.Flex,
    { gap: 3, wrap: "wrap", mb: 3, align: "center" },
    data.studies.length > 1 && h(Choose, { label: "Study", value: data.folder, options: data.studies.map((one) => [one.folder, one.study]), onChange: (study) => toAddress({ study, baseline: null, of: null, candidates: null, open: null }) }),
    h(Choose, { label: "Baseline", value: data.names.baseline, options: [...other, ...options], onChange: (name) => toAddress({ baseline: name, of: null, candidates: chosen.join("~~"), open: null }) }),
    h(Choose, { label: "Add a candidate", value: "", options: [["", chosen.length < MOST ? "choose a run or release" : `at most ${MOST}`], ...options.filter(([key]) => !chosen.includes(key))], onChange: (name) => name && chosen.length < MOST && set([...chosen, name]) }),
    chosen.map((name, place) => h(UI.Button, { key: name, size: "xs", variant: "outline", disabled: chosen.length === 1, "aria-label": `Leave out ${nameOf(data.candidates[place])}`, onClick: () => set(chosen.filter((one) => one !== name)) }, `${nameOf(data.candidates[place])} ×`)),
    h(Choose, { label: "Metric", value: data.metric.name, options: data.metrics.map((one) => [one.name, one.label]), onChange: (metric) => toAddress({ metric }) }),
    conditions.length > 0 &&
      h(
        "fieldset",
        { style: { fontSize: "0.875rem" } },
        h("legend", { style: { color: MUTED, float: "left", marginRight: "0.5rem" } }, "May differ:"),
        conditions.map((key) =>
          h("label", { key, style: { marginRight: "0.7rem" } }, h("input", { type: "checkbox", checked: data.ignored.includes(key), onChange: () => toAddress({ ignore: (data.ignored.includes(key) ? data.ignored.filter((one) => one !== key) : [...data.ignored, key]).join("~~") || null }) }), ` ${key}`),
        ),
      ),
  );
}

/** Blue is better, orange is worse, and what is neither has no colour; the text in the cell says all that. */
function tint(found, verdict, better) {
  if (!found || found.difference_ratio === null || verdict === "not comparable") return "transparent";
  const worse = found.difference_ratio > 0 === (better === "lower");
  const share = Math.min(1, Math.abs(found.difference_ratio) / 0.25);
  const sure = verdict === "regression" || verdict === "improvement";
  return `color-mix(in srgb, ${worse ? SERIES[1] : SERIES[0]} ${Math.round((sure ? 10 : 3) + (sure ? 30 : 7) * share)}%, transparent)`;
}

function HeatMap({ data, open, setOpen, dagId }) {
  const { metric } = data;
  return h(
    Section,
    { title: `${metric.label} against ${nameOf(data.baseline)}` },
    h(
      UI.Box,
      { overflowX: "auto", tabIndex: 0, role: "region", "aria-label": "Comparison" },
      h(
        "table",
        { style: { borderCollapse: "collapse", fontSize: "0.875rem" }, "data-testid": "llem-heat" },
        h(
          "thead",
          null,
          h(
            "tr",
            null,
            h("th", { scope: "col", style: { textAlign: "start", padding: "0.3rem 0.6rem" } }, "Experiment"),
            h("th", { scope: "col", style: { textAlign: "end", padding: "0.3rem 0.6rem" } }, "Baseline"),
            data.candidates.map((run, place) => h("th", { key: place, scope: "col", style: { textAlign: "start", padding: "0.3rem 0.6rem", fontWeight: 600 } }, h(Link, { to: energyPage(run.dag_id, run.run_id), style: UNDERLINED }, nameOf(run)))),
          ),
        ),
        h(
          "tbody",
          null,
          data.rows.map((row) => {
            const wanted = open.startsWith(`${row.experiment}~~`) ? Number(open.split("~~")[1]) : null;
            const one = wanted === null ? null : row.cells[wanted];
            const first = row.cells.find(Boolean);
            return h(
              Fragment,
              { key: row.experiment },
              h(
                "tr",
                { style: { borderTop: `1px solid ${LINE}` } },
                h("th", { scope: "row", title: row.experiment, style: { textAlign: "start", fontWeight: 400, padding: "0.3rem 0.6rem" } }, row.label),
                h("td", { style: { textAlign: "end", whiteSpace: "nowrap", padding: "0.3rem 0.6rem" } }, quantity(metric, first?.metrics[metric.name]?.mean_baseline, first?.estimate ? "estimate" : "")),
                row.cells.map((cell, place) => h(Cell, { key: place, cell, metric, active: wanted === place, toggle: () => setOpen(wanted === place ? "" : `${row.experiment}~~${place}`), label: `${row.label}, ${nameOf(data.candidates[place])}` })),
              ),
              one && h("tr", null, h("td", { colSpan: 2 + row.cells.length, style: { padding: "0.5rem 0.6rem 1rem" } }, h(Detail, { data, row, cell: one, candidate: data.candidates[wanted], dagId }))),
            );
          }),
        ),
      ),
    ),
    h(Muted, null, `Change of the mean with its 95 % interval and the verdict (smallest change that matters: ${number(100 * data.threshold_ratio)} %), p values corrected over all cells. Blue is better, orange worse, the stronger the larger; without a verdict the colour is faint. A cell opens its row.`),
  );
}

function Cell({ cell, metric, active, toggle, label }) {
  const found = cell?.metrics[metric.name];
  const style = { padding: "0.3rem 0.6rem", background: tint(found, cell?.verdict, metric.better), border: `1px solid ${active ? INK : "transparent"}` };
  if (!cell) return h("td", { style: { ...style, color: MUTED } }, "not measured");
  return h(
    "td",
    { style, "data-verdict": cell.verdict },
    h(
      "button",
      { type: "button", "aria-expanded": active, "aria-label": `${label}: ${found ? change(found.difference_ratio) : ""} ${cell.verdict}`, onClick: toggle, style: { textAlign: "start", cursor: "pointer", width: "100%" } },
      h("div", { style: { fontWeight: 600, whiteSpace: "nowrap" } }, found ? change(found.difference_ratio) : "–"),
      found?.low_ratio != null && h("div", { style: { fontSize: "0.75rem", whiteSpace: "nowrap" } }, `${change(found.low_ratio)} to ${change(found.high_ratio)}`),
      h("div", { style: { fontSize: "0.75rem" } }, signed(cell.verdict)),
    ),
  );
}

function Detail({ data, row, cell, candidate, dagId }) {
  const asked = { dag_id: dagId, baseline_dag: data.baseline.dag_id, baseline: data.baseline.run_id, baseline_experiment: row.experiment, run_id: candidate.run_id, experiment: cell.experiment };
  const { data: found, error } = useApi("pair", asked);
  const names = [nameOf(data.baseline), nameOf(candidate)];
  return h(
    UI.Box,
    { "data-testid": "llem-pair" },
    cell.caution && h(Muted, null, `Mind: ${cell.caution}.`),
    h(Differences, { title: "Conditions that differ, so nothing is compared", found: cell.differences, names }),
    h(Differences, { title: "Under study, and different", found: cell.factors, names }),
    error ? h(Notice, { kind: "warning", title: error }) : !found ? h(Loading) : h(Dumbbells, { data, cell, sides: found.sides, names }),
    found?.answers && h(Muted, null, `Answers: ${found.answers.finding}; ${found.answers.reason}.`),
    found && h(Power, { sides: found.sides, names, estimate: cell.estimate }),
  );
}

function Differences({ title, found, names }) {
  const rows = Object.entries(found);
  if (!rows.length) return null;
  return h(
    "table",
    { style: { fontSize: "0.8rem", margin: "0.4rem 0" } },
    h("caption", { style: { textAlign: "start", fontWeight: 600 } }, title),
    h("thead", null, h("tr", null, ["", ...names].map((name) => h("th", { key: name, style: { textAlign: "start", paddingRight: "1rem" } }, name)))),
    h("tbody", null, rows.map(([key, sides]) => h("tr", { key }, h("th", { scope: "row", style: { textAlign: "start", fontWeight: 400, paddingRight: "1rem" } }, key), sides.map((value, place) => h("td", { key: place, title: JSON.stringify(value), style: { paddingRight: "1rem" } }, short(value)))))),
  );
}

/** Both sides of each metric on one axis, as shares of the reference's mean, with their intervals. */
function Dumbbells({ data, cell, sides, names }) {
  const [ref, width] = useWidth(640);
  const rows = data.compared
    .map((metric) => ({ metric, told: cell.metrics[metric.name], ends: sides.map((side) => side.metrics[metric.name]) }))
    .filter((row) => row.ends.every(Boolean) && row.ends[0].mean !== 0);
  if (!rows.length) return null;
  const step = 40;
  const box = { left: Math.min(230, width * 0.4), right: width - 16, bottom: rows.length * step + 6 };
  const share = (row, value) => (100 * value) / row.ends[0].mean;
  const x = scaleFor(rows.flatMap((row) => row.ends.flatMap((one) => [one.mean, one.low ?? one.mean, one.high ?? one.mean].map((value) => share(row, value)))), box.left + 8, box.right - 8);
  return h(
    "div",
    { ref, style: { maxWidth: "60rem" }, "data-testid": "llem-dumbbells" },
    h(Legend, { title: "", groups: names.map((name, side) => `${name} (${cycles(rows[0].ends[side].n, rows[0].ends[side].hosts)})`) }),
    h(
      "svg",
      { width, height: box.bottom + 40, role: "img", "aria-label": rows.map((row) => `${row.metric.label}: ${quantity(row.metric, row.ends[0].mean)} to ${quantity(row.metric, row.ends[1].mean)}`).join("; ") },
      x.ticks.map(([value, text]) => h("g", { key: value }, h("line", { x1: x.at(value), x2: x.at(value), y1: 2, y2: box.bottom, stroke: LINE }), h("text", { x: x.at(value), y: box.bottom + 15, textAnchor: "middle", ...DIM }, text))),
      h("text", { x: (box.left + box.right) / 2, y: box.bottom + 33, textAnchor: "middle", ...TEXT }, "% of the baseline's mean"),
      rows.map((row, place) => {
        const middle = place * step + step / 2;
        const kind = cell.estimate ? "estimate" : "";
        const text = row.ends.map((one) => quantity(row.metric, one.mean, kind)).join(" → ");
        return h(
          "g",
          { key: row.metric.name },
          h("title", null, `${row.metric.label}: ${text}${row.told ? `; ${change(row.told.difference_ratio)}, ${row.told.verdict}` : ""}`),
          h("text", { x: box.left - 8, y: middle - 2, textAnchor: "end", ...TEXT }, row.metric.label),
          h("text", { x: box.left - 8, y: middle + 12, textAnchor: "end", ...DIM }, text),
          h("line", { x1: x.at(share(row, row.ends[0].mean)), x2: x.at(share(row, row.ends[1].mean)), y1: middle, y2: middle, stroke: MUTED }),
          row.ends.map((one, side) => {
            const down = middle + (side ? 5 : -5);
            return h(
              "g",
              { key: side },
              one.low !== null && h("line", { x1: x.at(share(row, one.low)), x2: x.at(share(row, one.high)), y1: down, y2: down, stroke: SERIES[side], strokeWidth: 2 }),
              side ? h("rect", { x: x.at(share(row, one.mean)) - 4, y: down - 4, width: 8, height: 8, fill: SERIES[1] }) : h("circle", { cx: x.at(share(row, one.mean)), cy: down, r: 4.5, fill: SERIES[0] }),
            );
          }),
        );
      }),
    ),
  );
}

/** Power of one cycle of each side, both from the begin of their measurement windows on. */
function Power({ sides, names, estimate }) {
  const asked = (side) => (side.cycles.length ? { dag_id: side.dag_id, run_id: side.run_id, experiment: side.experiment, cycle: side.cycles[0] } : null);
  const found = [useSide(asked(sides[0])), useSide(asked(sides[1]))];
  const [ref, width] = useWidth(640);
  const failed = found.find((one) => one.error);
  if (failed) return h(Muted, null, `Power over time is not shown: ${failed.error}`);
  if (!found.every((one) => one.data)) return h(Loading);
  const lines = found.flatMap(({ data }, side) => {
    const window = data.phases.find((one) => one.name === "measure");
    const from = window?.begin_s ?? data.first_s;
    return data.gpus.filter((gpu) => gpu.series.power_w).map((gpu) => ({ side, gpu: gpu.gpu, t: gpu.series.power_w.t_s.map((t) => t - from), w: gpu.series.power_w.values, end: (window?.end_s ?? data.last_s) - from }));
  });
  if (!lines.length) return h(Muted, null, "Neither cycle has samples of power.");
  const last = Math.max(...lines.map((one) => one.end));
  const inside = lines.map((one) => ({ ...one, points: one.t.map((t, place) => [t, one.w[place]]).filter(([t]) => t >= -0.1 * last && t <= 1.05 * last) }));
  const box = { left: 62, right: width - 14, top: 26, bottom: 200 };
  const x = scaleFor(inside.flatMap((one) => one.points.map(([t]) => t)), box.left, box.right, { pad: 0 });
  const y = scaleFor(inside.flatMap((one) => one.points.map(([, w]) => w)), box.bottom, box.top);
  return h(
    "div",
    { ref, style: { maxWidth: "60rem" }, "data-testid": "llem-overlay" },
    h(
      "svg",
      { width, height: 240, role: "img", "aria-label": `Power of cycle ${sides[0].cycles[0]} of ${names[0]} and of cycle ${sides[1].cycles[0]} of ${names[1]} from the begin of the measurement window on` },
      h("text", { x: box.left, y: 14, ...TEXT }, `Power, W${estimate ? " (estimate)" : ""}`),
      h(Levels, { y, left: box.left, right: box.right }),
      x.ticks.map(([value, text]) => h("text", { key: `x${value}`, x: x.at(value), y: box.bottom + 16, textAnchor: "middle", ...DIM }, text)),
      h("text", { x: (box.left + box.right) / 2, y: box.bottom + 34, textAnchor: "middle", ...TEXT }, "s since the begin of the measurement window"),
      inside.map((one) => h("polyline", { key: `${one.side}${one.gpu}`, points: one.points.map(([t, w]) => `${x.at(t)},${y.at(w)}`).join(" "), fill: "none", stroke: SERIES[one.side], strokeWidth: 1.5, strokeDasharray: one.side ? "5 2" : undefined })),
    ),
    h(Muted, null, `One line a device. Solid: ${names[0]}, cycle ${sides[0].cycles[0]}; dashed: ${names[1]}, cycle ${sides[1].cycles[0]}.`),
  );
}

const useSide = (asked) => {
  const found = useApi(asked ? "power" : null, asked ?? {});
  return asked ? found : { data: null, error: "a side has no cycle with a result" };
};

function Alone({ data }) {
  const parts = [
    ["Only in the baseline", data.only_baseline],
    ["Only in a candidate", data.only_candidate],
  ].filter(([, names]) => names.length);
  return parts.map(([title, names]) => h(Muted, { key: title }, `${title}: ${names.join(", ")}.`));
}
