// The trend of a study: each experiment over nights and releases, where it changed, and what changed around it.

import { energyPage, Fragment, h, Link, UI, useAddress, useApi, useMemo, useState } from "./base.js";
import { change, counted, day, isEstimate, number, quantity, scaleOf, sentence, spread, when } from "./format.js";
import { Choose, DataTable, INK, LINE, Loading, Muted, MUTED, Notice, PAPER, Section, SHAPES, stroke, Tag, UNDERLINED, Verbatim } from "./parts.js";
import { DIM, Legend, Levels, mark, scaleFor, TEXT, useWidth } from "./plots.js";

const MOST = 12;
const KINDS = ["release", "engine", "image", "driver", "gpu", "measured by"];
const cut = (text) => (text.length > 22 ? `…${text.slice(-20)}` : text);

export function Trend({ dagId }) {
  const [study, setStudy] = useAddress("study");
  const [metricName, setMetric] = useAddress("metric");
  const [chosen, setChosen] = useAddress("experiments");
  const asked = [["dag_id", dagId], ...(study ? [["study", study]] : []), ...(metricName ? [["metric", metricName]] : [])];
  const { data, error } = useApi("trend", [...asked, ...chosen.split("~").filter(Boolean).map((name) => ["experiment", name])]);
  const metric = data?.metric;
  const ready = Boolean(data?.histories?.length);
  const { data: told, error: untold } = useApi(ready ? "verdicts" : null, ready ? { dag_id: dagId, study: data.folder, metric: metric.name } : {});
  if (error) return h(Notice, { kind: "error", title: "The trend of this study cannot be read" }, h(Verbatim, { label: "What is wrong" }, error));
  if (!data) return h(Loading);
  if (!data.studies.length) return h(Notice, { title: "No run of this DAG has measured energy." }, h(Muted, null, `A trend begins with the second night. Results are looked for under ${data.root}.`));
  const toggle = (name) => {
    const next = data.chosen.includes(name) ? data.chosen.filter((one) => one !== name) : [...data.chosen, name].slice(-MOST);
    if (next.length) setChosen(next.join("~"));
  };
  return h(
    UI.Box,
    { "data-testid": "llem-trend" },
    h(
      UI.Flex,
      { gap: 3, wrap: "wrap", mb: 2 },
      data.studies.length > 1 && h(Choose, { label: "Study", value: data.folder, options: data.studies.map((one) => [one.folder, one.study]), onChange: setStudy }),
      data.metrics.length > 0 && h(Choose, { label: "Metric", value: metric.name, options: data.metrics.map((one) => [one.name, one.label]), onChange: setMetric }),
    ),
    data.problems.map((text) => h(Notice, { key: text, kind: "warning", title: text })),
    ready
      ? h(
          Fragment,
          null,
          h(History, { data, dagId }),
          h(Experiments, { data, told, untold, toggle }),
          h(Changes, { data, told, dagId }),
        )
      : h(Notice, { title: `No run has a value of ${metric.label} yet.` }, h(Muted, null, "A run counts from its aggregate on. Choose another metric, or look at the tab Runs.")),
  );
}

const nameOf = (data, history) => {
  const label = data.experiments.find((one) => one.experiment === history.experiment)?.label ?? history.experiment;
  return history.release ? `${label}, ${history.release}` : label;
};

/** What changed around the shown experiments, once a run and kind. */
function marksOf(data) {
  const found = new Map();
  for (const one of Object.values(data.around).flat()) found.set(`${one.run} ${one.what} ${one.after}`, one);
  return [...found.values()].sort((a, b) => a.run - b.run || KINDS.indexOf(a.what) - KINDS.indexOf(b.what));
}

function History({ data, dagId }) {
  const { metric, runs } = data;
  const [ref, width] = useWidth(800);
  const [seen, setSeen] = useState(null);
  const values = data.histories.flatMap((one) => one.points.flatMap(([, mean, low, high]) => [mean, low ?? mean, high ?? mean]));
  const scale = scaleOf(metric, Math.max(...values.map(Math.abs)));
  const marks = useMemo(() => marksOf(data), [data]);
  const lanes = marks.length ? Math.min(3, marks.length) : 0;
  const box = { left: 66, right: width - 14, top: 26 + 14 * lanes, bottom: 266 + 14 * lanes };
  const timed = runs.every((one) => one.started_epoch_ns);
  const place = (run) => (timed ? runs[run].started_epoch_ns / 1e6 : run);
  const y = scaleFor(values.map((value) => value * scale.factor), box.bottom, box.top);
  const x = scaleFor(runs.map((_, run) => place(run)), box.left + 8, box.right - 8, { pad: 0.02 });
  const at = (run) => x.at(place(run));
  const used = [...new Set(data.histories.flatMap((one) => one.points.map(([run]) => run)))].sort((a, b) => a - b);
  const look = (event) => {
    const left = event.clientX - event.currentTarget.getBoundingClientRect().left;
    setSeen(used.reduce((best, run) => (Math.abs(at(run) - left) < Math.abs(at(best) - left) ? run : best), used[0]));
  };
  const names = data.histories.map((one) => nameOf(data, one));
  const estimate = data.histories.some((one) => one.estimate);
  const title = `${metric.label}, ${scale.unit}${estimate && metric.energy ? " (estimate)" : ""}`;
  return h(
    Fragment,
    null,
    h(Legend, { title: "", groups: names }),
    h(
      "div",
      { ref, "data-testid": "llem-history" },
      h(
        "svg",
        { width, height: box.bottom + 40, role: "group", "aria-label": `${metric.label} of ${names.join("; ")} over ${counted(used.length, "run")}; the tables below have the numbers`, onMouseMove: look, onMouseLeave: () => setSeen(null) },
        h("text", { x: box.left, y: 12, ...TEXT }, title),
        h(Levels, { y, left: box.left, right: box.right }),
        h(Times, { runs, used, at, box }),
        marks.map((one, index) => h(Mark, { key: `${one.run}${one.what}${one.after}`, one, left: at(one.run), lane: index % 3, box })),
        data.histories.map((one, index) => h(Line, { key: names[index], one, index, at, y, scale, runs, dagId, metric, name: names[index] })),
        seen !== null && h("line", { x1: at(seen), x2: at(seen), y1: box.top, y2: box.bottom, stroke: INK, strokeOpacity: 0.5, pointerEvents: "none" }),
      ),
    ),
    h(Hover, { data, seen: seen ?? used.at(-1), names, scale, dagId }),
    h(Muted, null, `Mean over cycles with 95 % interval (from 3 cycles on). Filled: compared with the newest run; hollow: measured under other conditions. A ring marks where a level began, looking back. A point leads to its run. ${sentence(metric.meaning)}.`),
  );
}

function Times({ runs, used, at, box }) {
  const room = Math.max(2, Math.floor((box.right - box.left) / 110));
  const step = Math.max(1, Math.ceil(used.length / room));
  const text = (run) => (runs[run].started_epoch_ns ? day(runs[run].started_epoch_ns) : runs[run].run_id.slice(0, 12));
  let last = -Infinity;
  return h(
    "g",
    null,
    h("line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, stroke: MUTED }),
    used
      .filter((_, index) => index % step === 0)
      .map((run) => {
        const left = at(run);
        if (left - last < 80) return null;
        last = left;
        return h("g", { key: run }, h("line", { x1: left, x2: left, y1: box.bottom, y2: box.bottom + 4, stroke: LINE }), h("text", { x: left, y: box.bottom + 17, textAnchor: "middle", ...DIM }, text(run)));
      }),
  );
}

function Mark({ one, left, lane, box }) {
  const text = `${one.what}: ${cut(one.after)}`;
  const fits = left + 6.2 * text.length < box.right;
  return h(
    "g",
    { "data-mark": one.what },
    h("title", null, `${one.what}: ${one.before} → ${one.after}`),
    h("line", { x1: left, x2: left, y1: 20 + 14 * lane, y2: box.bottom, stroke: MUTED, strokeDasharray: "3 4" }),
    h("text", { x: fits ? left + 4 : left - 4, y: 29 + 14 * lane, textAnchor: fits ? "start" : "end", ...DIM }, text),
  );
}

function Line({ one, index, at, y, scale, runs, dagId, metric, name }) {
  const own = stroke(index);
  const colour = own.stroke;
  const up = (value) => y.at(value * scale.factor);
  const began = new Map(one.changes.map((each) => [each.run, each]));
  const joined = one.points.filter((point) => point.at(-1));
  const small = one.points.length > 120;
  return h(
    "g",
    null,
    h("polyline", { points: joined.map(([run, mean]) => `${at(run)},${up(mean)}`).join(" "), fill: "none", ...own, strokeOpacity: 0.6 }),
    one.points.map(([run, mean, low, high, n, hosts, compared]) => {
      const told = began.get(run);
      const about = `${name}, ${when(runs[run].started_epoch_ns)}: ${quantity(metric, mean, one.estimate ? "estimate" : "measured")}, ${spread(metric, { mean, low, high, n, hosts })}`;
      return h(
        Link,
        { key: run, to: energyPage(dagId, runs[run].run_id), tabIndex: -1, "aria-label": about, "data-run": runs[run].run_id },
        h("title", null, `${about}${told ? `; ${told.verdict} of ${change(told.ratio)} began` : ""}${compared ? "" : "; other conditions"}`),
        low !== null && h("line", { x1: at(run), x2: at(run), y1: up(low), y2: up(high), stroke: colour, strokeOpacity: 0.7 }),
        mark(SHAPES[index % SHAPES.length], at(run), up(mean), small ? 2.5 : 4, { fill: compared ? colour : PAPER, stroke: colour }),
        told && h("circle", { cx: at(run), cy: up(mean), r: 8, fill: "none", stroke: INK, strokeWidth: 1.5, "data-change": runs[run].run_id }),
      );
    }),
  );
}

/** The values of the run under the pointer; of the newest one without a pointer. */
function Hover({ data, seen, names, scale, dagId }) {
  const run = data.runs[seen];
  const rows = data.histories.map((one, index) => [names[index], one, one.points.find(([at]) => at === seen)]).filter((row) => row[2]);
  return h(
    UI.Box,
    { "data-testid": "llem-hover", fontSize: "sm", minH: "2.5rem" },
    h(Link, { to: energyPage(dagId, run.run_id), style: UNDERLINED }, when(run.started_epoch_ns)),
    run.release && ` · ${run.release}`,
    rows.map(([name, one, [, mean, low, high, n, hosts]]) =>
      h("div", { key: name }, `${name}: ${isEstimate(data.metric, one.estimate ? "estimate" : "") ? "~ " : ""}${number(mean * scale.factor)} ${scale.unit}, ${spread(data.metric, { mean, low, high, n, hosts }, scale)}`),
    ),
  );
}

function Experiments({ data, told, untold, toggle }) {
  const verdicts = (row) => (told?.verdicts ?? []).filter((one) => one.experiment === row.experiment);
  const newest = (row) => verdicts(row).at(-1);
  const columns = [
    {
      key: "shown",
      title: "Shown",
      value: (row) => (data.chosen.includes(row.experiment) ? 1 : 0),
      number: true,
      cell: (row) => h("input", { type: "checkbox", "aria-label": `Show ${row.label}`, checked: data.chosen.includes(row.experiment), onChange: () => toggle(row.experiment) }),
    },
    { key: "label", title: "Experiment", value: (row) => row.label, cell: (row) => h("span", { title: row.experiment }, row.label) },
    { key: "verdict", title: "Newest run", value: (row) => newest(row)?.verdict ?? null, cell: (row) => (newest(row) ? h(Tag, null, newest(row).verdict) : untold ? "not known" : "being worked out …") },
    { key: "state", title: "What it says", value: (row) => verdicts(row).map((one) => `${one.release ? `${one.release}: ` : ""}${one.state}`).join("; ") || null },
    { key: "detectable", title: "Would be told", help: "Step that would be told within 7 nights with 80 % power", number: true, value: (row) => newest(row)?.detectable_ratio ?? null, cell: (row) => (newest(row)?.detectable_ratio == null ? null : change(newest(row).detectable_ratio)) },
    { key: "changes", title: "Changes, looking back", number: true, value: (row) => row.changes },
    { key: "runs", title: "Runs", number: true, value: (row) => row.runs },
  ];
  const notes = [...new Set((told?.verdicts ?? []).filter((one) => data.chosen.includes(one.experiment)).map((one) => one.note))];
  return h(
    Section,
    { title: "Experiments", "data-testid": "llem-trend-experiments" },
    untold && h(Notice, { kind: "warning", title: untold }),
    h(DataTable, { name: "trend", label: "Experiments", columns, rows: data.experiments, rowKey: (row) => row.experiment }),
    h(Muted, null, `At most ${MOST} are drawn.${notes.length ? ` The verdict: ${notes.join("; ")}.` : ""}`),
  );
}

function Changes({ data, told, dagId }) {
  const rows = [];
  data.histories.forEach((one) => {
    for (const each of one.changes) rows.push({ run: each.run, who: nameOf(data, one), what: each.verdict, from: `${change(each.ratio)}, looking back (p ${each.p < 0.0001 ? "< 0.0001" : `= ${number(each.p, 2)}`})` });
  });
  const place = new Map(data.runs.map((one, index) => [one.run_id, index]));
  for (const one of told?.verdicts ?? [])
    if (data.chosen.includes(one.experiment))
      for (const each of one.told)
        rows.push({ run: place.get(each.run_id), who: nameOf(data, one), what: each.ratio > 0 === (data.metric.better === "lower") ? "regression" : "improvement", from: `${each.drift ? "drift" : "step"} of ${change(each.ratio)}, told that night, begun ${when(data.runs[place.get(each.began)]?.started_epoch_ns)}` });
  for (const one of marksOf(data)) rows.push({ run: one.run, who: "around", what: one.what, from: `${one.before} → ${one.after}` });
  if (!rows.length) return h(Section, { title: "Changes" }, h(Muted, null, "Nothing changed over these runs, as far as they tell."));
  const columns = [
    { key: "when", title: "Run", value: (row) => row.run, cell: (row) => h(Link, { to: energyPage(dagId, data.runs[row.run].run_id), style: UNDERLINED }, when(data.runs[row.run].started_epoch_ns)) },
    { key: "who", title: "Of", value: (row) => row.who },
    { key: "what", title: "What", value: (row) => row.what, cell: (row) => h(Tag, null, row.what) },
    { key: "from", title: "How", value: (row) => row.from },
  ];
  rows.sort((a, b) => b.run - a.run);
  return h(Section, { title: "Changes", "data-testid": "llem-changes" }, h(DataTable, { name: "changes", label: "Changes", columns, rows: rows.map((row, index) => ({ ...row, index })), rowKey: (row) => row.index }));
}
