// One cycle: power with its phases, what the GPUs did meanwhile, the requests, latencies, environment, files.

import { energyPage, Fragment, h, Link, ours, UI, useAddress, useApi, useChange, useEffect, useRef, useState } from "./base.js";
import { counted, duration, ended, niceTicks, number, quantity, stretch, when } from "./format.js";
import { Live } from "./live.js";
import { Attempt, Estimate, Facts, INK, LINE, LineKey, Loading, Muted, Notice, Page, Section, SERIES, stroke, UNDERLINED } from "./parts.js";
import { DIM, Levels, phaseBands, Picture, scaleFor, TEXT, useWidth } from "./plots.js";

const PANELS = [
  ["power_w", "Power, W", 190],
  ["temperature_c", "Temperature, °C", 90],
  ["sm_clock_mhz", "Clock of the processors, MHz", 90],
  ["mem_clock_mhz", "Clock of the memory, MHz", 90],
];
const LEFT = 62;
const AT_WORK_MS = 5000;
const NOT_YET_MS = 15000;

/** The Energy tab of a task: the cycle that it measures. */
export function TaskPage({ dagId, runId, taskId, mapIndex }) {
  const { data, error } = useApi("task", { dag_id: dagId, run_id: runId, task_id: taskId, map_index: mapIndex ?? -1 });
  const { experiment, cycle } = data ?? {};
  return h(
    Page,
    { title: "Energy" },
    error && h(Notice, { kind: "error", title: error }),
    !data && !error && h(Loading),
    experiment && h(CyclePage, { dagId, runId, experiment, cycle, label: experiment }),
    data && !experiment && h(Muted, null, "This task measures no cycle of its own."),
    h(UI.Text, { mt: 4, fontSize: "sm" }, h(Link, { to: energyPage(dagId, runId), style: UNDERLINED }, "Energy of the whole run")),
  );
}

/** The Energy tab of a task or a group of a DAG: the cycle or the experiment in its newest runs. */
export function DagTaskPage({ dagId, taskId, group }) {
  const { data, error } = useApi("runs", { dag_id: dagId });
  const [, path, cycle] = (taskId ?? "").match(/^(.*)\.cycle_(\d+)$/) ?? [];
  const experiment = (path ?? (group ? decodeURIComponent(group) : "")).split(".").pop();
  const where = (row) => `${energyPage(dagId, row.run_id)}?${new URLSearchParams(cycle ? { view: "cycle", cell: `${experiment}.${cycle}` } : { view: "cycles" })}`;
  return h(
    Page,
    { title: "Energy" },
    error && h(Notice, { kind: "error", title: error }),
    !data && !error && h(Loading),
    data && !experiment && h(Muted, null, "This task measures no cycle of its own."),
    data && experiment && data.runs.length === 0 && h(Muted, null, "No run of this DAG has measured energy yet."),
    data && experiment && data.runs.length > 0 &&
      h(
        Section,
        { title: cycle ? `${experiment}, cycle ${cycle}, in the newest runs` : `${experiment} in the newest runs` },
        h(
          UI.Box,
          { as: "ul", "data-testid": "llem-task-runs" },
          data.runs.map((row) => h("li", { key: row.run_id }, h(Link, { to: where(row), style: UNDERLINED }, row.started_epoch_ns ? when(row.started_epoch_ns) : row.run_id), row.release ? ` ${row.release}` : "")),
        ),
      ),
  );
}

export function CyclePage({ dagId, runId, experiment, cycle, label }) {
  const asked = { dag_id: dagId, run_id: runId, experiment, cycle };
  const { data, error } = useApi("cycle", asked, (told) => (told.live ? AT_WORK_MS : told.measured ? null : NOT_YET_MS));
  if (error) return h(Notice, { kind: "error", title: error });
  const found = data?.measured;
  return h(
    UI.Box,
    { "data-testid": "llem-cycle" },
    h(UI.Heading, { as: "h2", size: "md" }, `${label}, cycle ${cycle}`),
    data?.results > 1 && h(Muted, null, `Measured ${data.results} times; the newest result counts and is shown.`),
    data?.live && h(Section, { title: "Power now" }, h(Live, { asked })),
    !data && h(Loading),
    found && h(UI.Text, { mt: 1 }, found.line, h(Estimate, { kind: found.energy_kind })),
    found?.reason && !found.line.includes(found.reason) && h(Notice, { kind: "warning", title: found.reason }),
    (found || !data) && h(Time, { asked, estimate: found?.energy_kind === "estimate", known: Boolean(found) }), // its series does not wait for the numbers
    found &&
      h(
        Fragment,
        null,
        h(Flags, { flags: found.flags }),
        h(Numbers, { found }),
        h(Environment, { environment: found.environment }),
        h(Files, { asked, found }),
      ),
    data && !found && !data.live && h(Notice, { title: "No attempt has left a result: none has ended yet, or each failed, or it ended together with its worker; then the log of the task says more." }),
    data?.reasons.map((reason) => h(Notice, { key: reason, title: `Not measured: ${reason}` })),
    data?.failures.map((failure) => h(Attempt, { key: `${failure.attempt}${failure.url}`, failure })),
  );
}

/** Power, temperature, clocks and requests over one time axis; dragging zooms, and the address keeps the stretch. */
function Time({ asked, estimate, known }) {
  const [from] = useAddress("from");
  const [to] = useAddress("to");
  const within = from && to ? { begin_s: from, end_s: to } : {};
  const { data, error } = useApi("power", { ...asked, ...within });
  const { data: told } = useApi("requests", asked);
  const [last, setLast] = useState(null);
  useEffect(() => {
    if (data) setLast(data);
  }, [data]);
  const [ref, width] = useWidth(800);
  const zoom = useZoom();
  const shown = data ?? last;
  if (!known && !shown) return null;
  if (error) return h(Section, { title: "Power" }, h(Muted, null, error));
  if (!shown) return h(Section, { title: "Power" }, h(Loading));
  const span = shown.end_s - shown.begin_s;
  const whole = shown.begin_s <= shown.first_s && shown.end_s >= shown.last_s;
  const right = width - 10;
  const at = (s) => LEFT + ((s - shown.begin_s) / (span || 1)) * (right - LEFT);
  const back = (x) => shown.begin_s + ((x - LEFT) / (right - LEFT)) * span;
  const move = (share) => {
    const begin = Math.max(shown.first_s, Math.min(shown.last_s - span, shown.begin_s + share * span));
    zoom(begin, begin + span);
  };
  const scale = (factor) => {
    const middle = (shown.begin_s + shown.end_s) / 2;
    const half = (span * factor) / 2;
    if (factor > 1 && 2 * half >= shown.last_s - shown.first_s) zoom(null, null);
    else zoom(Math.max(shown.first_s, middle - half), Math.min(shown.last_s, middle + half));
  };
  const buttons = [
    ["Zoom in", "+", () => scale(0.5), false],
    ["Zoom out", "−", () => scale(2), whole],
    ["Earlier", "←", () => move(-0.5), shown.begin_s <= shown.first_s],
    ["Later", "→", () => move(0.5), shown.end_s >= shown.last_s],
    ["Whole cycle", "whole", () => zoom(null, null), whole],
  ];
  const panels = PANELS.filter(([name]) => shown.gpus.some((gpu) => gpu.series[name]));
  return h(
    Section,
    { title: `Power over time${estimate ? " (estimate)" : known ? "" : ", its numbers are being read"}` },
    h(
      UI.Flex,
      { gap: 1, wrap: "wrap", align: "center", mb: 1 },
      buttons.map(([label, text, act, off]) => h(UI.Button, { key: label, size: "xs", variant: "outline", "aria-label": label, onClick: act, disabled: off }, text)),
      h(Muted, null, `${stretch(shown.begin_s, shown.end_s)}, ${shown.samples.toLocaleString("en")} samples${shown.average ? ", averaged by the driver" : ""}. Drag to zoom.`),
    ),
    h(LineKey, { lines: shown.gpus, name: (gpu) => gpu.gpu }),
    h(
      Picture,
      { watch: ref, name: `Power of ${asked.experiment} cycle ${asked.cycle}`, groups: shown.gpus.map((gpu) => gpu.gpu), "data-testid": "llem-power", "data-begin": shown.begin_s, "data-end": shown.end_s },
      panels.map(([name, title, height]) => h(Panel, { key: name, name, title, height, shown, at, back, right, width, zoom })),
      told && told.shown.length > 0 && h(Requests, { told, shown, at, right, width }),
      h(Slowed, { shown }),
    ),
    told && h(Latencies, { told }),
  );
}

function useZoom() {
  const change = useChange();
  const text = (value) => (value === null ? null : String(Number(value.toFixed(4))));
  return (begin, end) => change({ from: text(begin), to: text(end) });
}

function Panel({ name, title, height, shown, at, back, right, width, zoom }) {
  const [drag, setDrag] = useState(null);
  const svg = useRef(null);
  const known = shown.gpus.filter((gpu) => gpu.series[name]);
  const values = known.flatMap((gpu) => gpu.series[name].values);
  const [top, bottom] = [20, height - 22];
  const y = scaleFor(values.length ? values : [0, 1], bottom, top, { zero: name === "power_w" });
  const ticks = niceTicks(shown.begin_s, shown.end_s, Math.floor((right - LEFT) / 90));
  const place = (event) => Math.min(right, Math.max(LEFT, event.clientX - svg.current.getBoundingClientRect().left));
  const down = (event) => {
    event.currentTarget.setPointerCapture(event.pointerId);
    setDrag([place(event), place(event)]);
  };
  const up = (event) => {
    const ends = drag ? [drag[0], place(event)] : [0, 0]; // the last move may not be drawn yet
    if (Math.abs(ends[1] - ends[0]) > 6) zoom(back(Math.min(...ends)), back(Math.max(...ends)));
    setDrag(null);
  };
  return h(
    "svg",
    {
      ref: svg,
      width,
      height,
      role: "img",
      "aria-label": `${title} over time, from ${number(Math.min(...values))} to ${number(Math.max(...values))}`,
      style: { touchAction: "pan-y", cursor: "crosshair", display: "block" },
      onPointerDown: down,
      onPointerMove: (event) => drag && setDrag([drag[0], place(event)]),
      onPointerUp: up,
      onPointerCancel: () => setDrag(null),
      onDoubleClick: () => zoom(null, null),
    },
    phaseBands(shown.phases, { at, left: LEFT, right, top, bottom, named: name === "power_w" }),
    h(Levels, { y, left: LEFT, right }),
    ticks.map(([value, text]) => h("text", { key: value, x: at(value), y: height - 6, textAnchor: "middle", ...DIM }, `${text} s`)),
    h("text", { x: LEFT, y: 13, ...TEXT }, title),
    known.map((gpu) => {
      const { t_s: t, values: v } = gpu.series[name];
      return h("polyline", { key: gpu.gpu, points: t.map((s, index) => `${at(s).toFixed(1)},${y.at(v[index]).toFixed(1)}`).join(" "), fill: "none", ...stroke(shown.gpus.indexOf(gpu)), strokeWidth: 1.2 });
    }),
    drag && h("rect", { x: Math.min(...drag), y: top, width: Math.abs(drag[1] - drag[0]), height: bottom - top, fill: INK, fillOpacity: 0.15 }),
  );
}

function Requests({ told, shown, at, right, width }) {
  const rows = told.shown.filter(([submit, , last]) => submit !== null && last !== null && last >= shown.begin_s && submit <= shown.end_s).slice(0, 400);
  if (!rows.length) return null;
  const step = Math.max(1.5, Math.min(8, 160 / rows.length));
  const height = 34 + rows.length * step;
  const cut = (s) => Math.min(right, Math.max(LEFT, at(s)));
  return h(
    "svg",
    { width, height, role: "img", "aria-label": `${told.requests} requests of the measured window over time`, style: { display: "block" } },
    h("text", { x: LEFT, y: 13, ...TEXT }, "Requests: to the first token (light), then generation"),
    rows.map(([submit, first, last], place) => {
      const y = 20 + place * step;
      const token = first ?? last;
      return h(
        "g",
        { key: place },
        h("rect", { x: cut(submit), y, width: Math.max(0.5, cut(token) - cut(submit)), height: step * 0.7, fill: SERIES[5] }),
        h("rect", { x: cut(token), y, width: Math.max(0.5, cut(last) - cut(token)), height: step * 0.7, fill: SERIES[0] }),
      );
    }),
  );
}

function Slowed({ shown }) {
  const found = shown.gpus.flatMap((gpu) => gpu.slowed.map((one) => ({ ...one, gpu: gpu.gpu })));
  if (!found.length) return null;
  return h(
    Notice,
    { kind: "warning", title: "A GPU was slowed down" },
    h(UI.Box, { as: "ul", pl: 5, listStyleType: "disc", fontSize: "sm" }, found.slice(0, 20).map((one, place) => h("li", { key: place }, `${one.reason}, ${number(one.begin_s, 4)} to ${number(one.end_s, 4)} s, ${one.gpu}`))),
  );
}

const LATENCIES = { ttft: "Time to first token", itl: "Gap between chunks (ITL)", e2el: "End to end" };

function Latencies({ told }) {
  return h(
    Section,
    { title: "Latencies of the window" },
    h(
      "div",
      { "data-testid": "llem-latencies", style: { display: "grid", gridTemplateColumns: "repeat(auto-fit, minmax(min(100%, 18rem), 1fr))", gap: "0.5rem" } },
      Object.entries(LATENCIES).map(([name, title]) => told.latencies[name].values_s.length > 1 && h(Cumulative, { key: name, title, found: told.latencies[name] })),
    ),
  );
}

/** Which share of the values lies below each: the median and the tail are read off without choosing bins. */
function Cumulative({ title, found }) {
  const [ref, width] = useWidth(300);
  const values = found.values_s;
  const factor = values.at(-1) < 1 ? 1e3 : 1;
  const box = { left: 40, right: width - 12, top: 24, bottom: 130 };
  const x = scaleFor(values.map((value) => value * factor), box.left, box.right, { pad: 0.02 });
  const y = (share) => box.bottom - share * (box.bottom - box.top);
  const points = values.map((value, place) => `${x.at(value * factor).toFixed(1)},${y((place + 1) / values.length).toFixed(1)}`);
  const quantile = (share) => number(values[Math.min(values.length - 1, Math.floor(share * values.length))] * factor);
  const unit = factor === 1e3 ? "ms" : "s";
  return h(
    Picture,
    { watch: ref, name: title, style: { minWidth: 0 } },
    h(
      "svg",
      { width, height: 164, style: { overflow: "visible" }, role: "img", "aria-label": `${title} of ${found.n} values: median ${quantile(0.5)} ${unit}, largest ${number(values.at(-1) * factor)} ${unit}` },
      h("text", { x: box.left, y: 13, ...TEXT }, `${title}, ${unit} (n = ${found.n.toLocaleString("en")})`),
      [0, 0.5, 1].map((share) => h("g", { key: share }, h("line", { x1: box.left, x2: box.right, y1: y(share), y2: y(share), stroke: LINE }), h("text", { x: box.left - 5, y: y(share) + 4, textAnchor: "end", ...DIM }, `${share * 100} %`))),
      x.ticks.map(([value, text]) => h("text", { key: value, x: x.at(value), y: box.bottom + 16, textAnchor: "middle", ...DIM }, text)),
      h("polyline", { points: points.join(" "), fill: "none", stroke: SERIES[0], strokeWidth: 1.5 }),
    ),
  );
}

const Flags = ({ flags }) =>
  flags.length > 0 &&
  h(
    Section,
    { title: "Reasons to doubt, and remarks" },
    flags.map((flag) => h(UI.Box, { key: flag.code + flag.message, fontSize: "sm", mb: 1 }, h("strong", null, `${flag.severity}: ${flag.code}`), ` ${ended(flag.message)} `, h("em", null, flag.next_step))),
  );

function Numbers({ found }) {
  const took = found.started_epoch_ns && found.finished_epoch_ns ? duration((found.finished_epoch_ns - found.started_epoch_ns) / 1e9) : "–";
  return h(
    Section,
    { title: "Numbers" },
    h(Facts, {
      rows: [
        ["Began", `${when(found.started_epoch_ns)}, took ${took} on ${found.host || "an unknown host"}`],
        ["Energy", [...new Set([found.energy_kind, found.energy_source, found.energy_boundary, found.characterised])].filter(Boolean).join(", ")],
        ...found.metrics.map((metric) => [metric.label, quantity(metric, metric.value, found.energy_kind)]),
      ],
    }),
  );
}

function flat(value, prefix = "") {
  if (value === null || typeof value !== "object") return value === null || value === "" ? [] : [[prefix, String(value)]];
  return Object.entries(value).flatMap(([key, item]) => flat(item, prefix ? `${prefix}.${key}` : key));
}

const Environment = ({ environment }) =>
  h(
    Section,
    { title: null },
    h("details", null, h("summary", { style: { cursor: "pointer", fontWeight: 600 } }, "Environment"), h(Facts, { rows: flat(environment) })),
  );

function Files({ asked, found }) {
  const get = (name) => ours("download/cycle", { ...asked, name });
  const link = (name, text) => h("a", { href: get(name), download: "", style: UNDERLINED }, text);
  return h(
    Section,
    { title: "Files" },
    h(Muted, null, found.folder),
    h(Facts, {
      rows: found.files.map((file) => [
        link(file.name, file.name),
        h(Fragment, null, counted(file.bytes, "byte"), file.name.endsWith(".parquet") && h(Fragment, null, ", ", link(file.name.replace(/\.parquet$/, ".csv"), "as CSV"))),
      ]),
    }),
  );
}
