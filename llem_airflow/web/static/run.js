// The Energy tab of a DAG run: what happens now, the matrix of cycles, what failed and why, the results.

import { Fragment, h, Link, logTail, ours, taskPage, UI, useAddress, useApi, useEffect, useState } from "./base.js";
import { CyclePage } from "./cycle.js";
import { Explorer } from "./explore.js";
import { between, change, counted, duration, number, quantity, when } from "./format.js";
import { Live } from "./live.js";
import { Attempt, Estimate, Facts, INK, LINE, Loading, Muted, Notice, Page, PlainTable, Section, SERIES, Tabs, Tag, UNDERLINED, Verbatim } from "./parts.js";

const PER_TOKEN = { name: "energy_per_output_token_j", unit: "J/token", energy: true };
const ENERGY = { name: "energy_j", unit: "J", energy: true };
const POLL_MS = 5000;
const CELL = /^(.*)\.(\d+)$/;
const SIGNS = {
  measured: "✓",
  running: "▶",
  queued: "…",
  waiting: "·",
  skipped: "–",
  failed: "✗",
  damaged: "✗",
  missed: "✗",
  missing: "?",
  invalid_energy: "!",
  "not begun": "·",
  "waiting for another try": "↻",
};
const COLOURS = {
  measured: "green",
  running: "blue",
  queued: "blue",
  failed: "red",
  damaged: "red",
  missed: "red",
  missing: "orange",
  invalid_energy: "orange",
  "waiting for another try": "orange",
};
const SAID = { invalid_energy: "measured, energy withheld", missed: "no GPU came" };
const said = (state) => SAID[state] ?? state;

/** The page of one cycle does not wait for what is told of its run. */
const NOTHING_YET = { state: "", said: "", failures: [], comparisons: [], experiments: [] };

export function RunPage({ dagId, runId }) {
  const { data: told, error } = useApi("run", { dag_id: dagId, run_id: runId }, (found) => (found.ended && !found.unread ? null : POLL_MS));
  const [view, setView] = useAddress("view");
  const data = told ?? (view === "cycle" && !error ? NOTHING_YET : null);
  if (error && !data) return h(Page, { title: "Energy" }, h(Notice, { kind: "error", title: error }));
  if (!data) return h(Page, { title: "Energy" }, h(Loading));
  if (data.foreign)
    return h(Page, { title: "Energy" }, h(Muted, null, "This DAG measures no energy: it has no task of llem-airflow."));
  const marked = data.failures.some((one) => one.text && one.places.length > 0);
  const tabs = [
    ...(data.explorable ? [["results", "Results"]] : []),
    ...(data.experiments.length ? [["cycles", "Cycles"]] : []),
    ...(view === "cycle" ? [["cycle", "One cycle"]] : []),
    ...(data.study_text && !(marked && data.experiments.length === 0) ? [["study", "Study file"]] : []),
  ];
  const shown = view || (data.explorable && data.ended ? "results" : data.experiments.length ? "cycles" : tabs[0]?.[0]);
  return h(
    Page,
    { title: data.study ?? dagId, aside: h(Fragment, null, data.state && h(Tag, null, data.state), data.preliminary && h(Tag, null, "preliminary")) },
    data.said && h(UI.Text, null, `${data.title}. ${data.said}`),
    error && h(Notice, { kind: "warning", title: `Not up to date: ${error}` }),
    data.problem && h(Notice, { kind: "error", title: "A file of this run cannot be read" }, h(Verbatim, { label: "What is wrong" }, data.problem)),
    h(Progress, { data }),
    h(Failures, { data, dagId, runId }),
    h(Comparisons, { data }),
    tabs.length > 0 && h(UI.Box, { mt: 4 }, h(Tabs, { label: "Views of the run", value: shown, options: tabs, onChange: setView })),
    shown === "results" && data.explorable && h(Explorer, { dagId, runId, preliminary: !data.ended }),
    shown === "cycles" && data.experiments.length > 0 && h(Matrix, { data, dagId, runId }),
    shown === "cycle" && h(OneCycle, { dagId, runId, rows: data.experiments }),
    shown === "study" && h(StudyText, { text: data.study_text, places: data.failures.flatMap((one) => one.places) }),
    data.report &&
      h(
        UI.Text,
        { mt: 4, fontSize: "sm" },
        h("a", { href: ours("run", { dag_id: dagId, run_id: runId }), target: "_blank", rel: "noreferrer", style: UNDERLINED }, "Report for the archive"),
        " (one file, also without Airflow)",
      ),
  );
}

function OneCycle({ dagId, runId, rows }) {
  const [picked] = useAddress("cell");
  const [, experiment, cycle] = picked.match(CELL) ?? [];
  if (!experiment) return h(Notice, { title: "Choose a cycle in the view Cycles." });
  const label = rows.find((one) => one.id === experiment)?.label ?? experiment;
  return h(CyclePage, { dagId, runId, experiment, cycle, label });
}

function Progress({ data }) {
  if (!data.planned) return null;
  const share = data.measured / data.planned;
  const eta = data.eta;
  return h(
    UI.Box,
    { mt: 2, "data-testid": "llem-progress" },
    h(
      "div",
      {
        role: "progressbar",
        "aria-label": "Cycles measured",
        "aria-valuemin": 0,
        "aria-valuemax": data.planned,
        "aria-valuenow": data.measured,
        style: { height: "8px", border: `1px solid ${LINE}`, borderRadius: "4px", maxWidth: "40rem", overflow: "hidden" },
      },
      h("div", { style: { width: `${100 * share}%`, height: "100%", background: SERIES[2] } }),
    ),
    eta &&
      h(
        UI.Text,
        { fontSize: "sm", mt: 1 },
        `Time left: about ${duration(eta.low_s)} to ${duration(eta.high_s)}, until ${between(data.now_epoch_ns + eta.low_s * 1e9, data.now_epoch_ns + eta.high_s * 1e9)}`,
        h(Muted, null, `for ${counted(eta.cycles, "cycle")}: ${eta.basis}`),
      ),
    !data.ended && !eta && data.measured < data.planned && h(Muted, null, "Time left: not known, as no cycle of this DAG has ended yet."),
    data.unread > 0 && h(Muted, null, `${counted(data.unread, "measured cycle")} still being read.`),
  );
}

function Failures({ data, dagId, runId }) {
  return data.failures.map((failure, place) =>
    h(
      Section,
      { key: place, title: `${failure.tasks.slice(0, 3).map((one) => one.name).join("; ")} failed` },
      failure.text
        ? h(
            UI.Flex,
            { gap: 4, wrap: "wrap", align: "flex-start" },
            h(UI.Box, { flex: "1 1 22rem", minW: 0 }, h(Verbatim, { label: "What it failed with" }, failure.text)),
            failure.places.length > 0 &&
              data.study_text &&
              h(UI.Box, { flex: "1 1 22rem", minW: 0 }, h(StudyText, { text: data.study_text, places: failure.places })),
          )
        : h(UI.Text, null, "It left no text."),
      h(Link, { to: taskPage(dagId, runId, failure.tasks[0]), style: { ...UNDERLINED, fontSize: "0.875rem" } }, "Log of the task"),
    ),
  );
}

/** The study's file with its lines numbered, and each problem under its line. */
function StudyText({ text, places }) {
  const lines = new Map(places.map((one) => [one.line, places.filter((other) => other.line === one.line)]));
  return h(
    UI.Box,
    { as: "ol", "aria-label": "Study file", tabIndex: 0, fontFamily: "mono", fontSize: "xs", borderWidth: "1px", borderRadius: "sm", bg: "bg.subtle", maxH: "32rem", overflow: "auto", listStyleType: "none", p: 1 },
    text.replace(/\n$/, "").split("\n").map((line, index) =>
      h(
        "li",
        { key: index, style: { whiteSpace: "pre-wrap" } },
        h("span", { "aria-hidden": true, style: { display: "inline-block", width: "3.2em", textAlign: "right", paddingRight: "0.8em", opacity: 0.6, userSelect: "none" } }, index + 1),
        h("span", lines.has(index + 1) ? { style: { textDecoration: `underline wavy ${SERIES[1]}` } } : null, line),
        (lines.get(index + 1) ?? []).map((one) =>
          h(
            UI.Box,
            { key: `${one.column}${one.text}`, as: "div", "data-testid": "llem-problem", bg: "red.subtle", color: "red.fg", ml: "3.2em", whiteSpace: "pre-wrap" },
            h("div", { "aria-hidden": true, style: { whiteSpace: "pre", overflow: "hidden" } }, `${" ".repeat(Math.max(0, one.column - 1))}↑`),
            one.text,
          ),
        ),
      ),
    ),
  );
}

function Comparisons({ data }) {
  return data.comparisons.map((found, place) => {
    const metric = String(found.metric ?? "");
    return h(
      Section,
      { key: place, title: `Comparison: ${found.verdict}` },
      h(PlainTable, {
        label: `Comparison ${place + 1}`,
        titles: ["Experiment", "Against", "Verdict", found.label, "n"],
        rows: Object.entries(found.outcomes).map(([candidate, outcome]) => {
          const one = found.changes?.[candidate]?.[metric] ?? {};
          const ends = one.low_ratio == null ? "" : ` (${change(one.low_ratio)} to ${change(one.high_ratio)})`;
          return [
            candidate,
            found.baselines?.[candidate] ?? "",
            h(Tag, null, String(outcome)),
            one.difference_ratio == null ? "" : `${change(one.difference_ratio)}${ends}`,
            one.n_baseline == null ? "" : `${one.n_baseline} and ${one.n_candidate}`,
          ];
        }),
      }),
      h(
        UI.Box,
        { as: "ul", pl: 5, listStyleType: "disc", fontSize: "sm" },
        [...found.said.map(String), ...(found.without_baseline ?? []).map((name) => `No earlier run to compare with: ${name}`)].map((text) =>
          h("li", { key: text }, text),
        ),
      ),
    );
  });
}

function Matrix({ data, dagId, runId }) {
  const [picked, pick] = useAddress("cell");
  const most = Math.max(...data.experiments.map((row) => row.cells.length));
  const running = data.experiments.flatMap((row) =>
    row.cells.filter((cell) => ["running", "waiting"].includes(cell.state) && cell.try_number > 0).map((cell) => ({ ...cell, row })),
  );
  const [, id, cycle] = picked.match(CELL) ?? [];
  const row = data.experiments.find((one) => one.id === id);
  const cell = row?.cells.find((one) => one.cycle === Number(cycle));
  return h(
    Fragment,
    null,
    !data.ended && running.length > 0 && h(Now, { cells: running, picked, dagId, runId, now: data.now_epoch_ns }),
    h(Muted, null, `Energy per output token of each cycle${data.preliminary ? ", preliminary: cycles are still being measured, and the checks over all of them are still to come" : ""}. Choose a cycle for more.`),
    h(
      UI.Box,
      { overflowX: "auto", mt: 2, tabIndex: 0, role: "region", "aria-label": "Experiments and cycles" },
      h(
        "table",
        { "data-testid": "llem-matrix", style: { borderCollapse: "separate", borderSpacing: "3px" } },
        h(
          "thead",
          null,
          h("tr", null, h("th", { scope: "col", style: { textAlign: "start", fontWeight: 400, fontSize: "0.8rem" } }, "experiment"), Array.from({ length: most }, (_, at) => h("th", { key: at, scope: "col", style: { fontWeight: 400, fontSize: "0.8rem" } }, `cycle ${at + 1}`))),
        ),
        h(
          "tbody",
          null,
          data.experiments.map((each) =>
            h(
              "tr",
              { key: each.id },
              h("th", { scope: "row", title: each.id, style: { textAlign: "start", fontWeight: 400, fontSize: "0.875rem", paddingInlineEnd: "0.6rem", minWidth: "8rem" } }, each.label),
              each.cells.map((one) =>
                h("td", { key: one.cycle }, h(Cell, { cell: one, row: each, chosen: cell === one, onPick: () => pick(cell === one ? "" : `${each.id}.${one.cycle}`) })),
              ),
            ),
          ),
        ),
      ),
    ),
    h(Key, { data }),
    data.sessions.length > 0 && h(Sessions, { data, pick }),
    cell && h(Detail, { cell, row, dagId, runId }),
  );
}

function Cell({ cell, row, chosen, onPick }) {
  const colour = cell.state === "measured" && cell.doubtful ? "yellow" : (COLOURS[cell.state] ?? "gray");
  const value = cell.energy_per_output_token_j;
  const tries = cell.failures.length ? `${counted(cell.failures.length, "attempt")} failed` : "";
  const sign = cell.state === "measured" && cell.doubtful ? "!" : (SIGNS[cell.state] ?? "?");
  const text = `${sign} ${value === null ? said(cell.state) : quantity(PER_TOKEN, value, cell.energy_kind)}`;
  const below = [cell.duration_s !== null && duration(cell.duration_s), cell.spread_to, cell.state !== "failed" && tries].filter(Boolean).join(", ");
  return h(
    UI.Box,
    {
      as: "button",
      type: "button",
      onClick: onPick,
      "aria-pressed": chosen,
      "aria-label": `${row.label}, cycle ${cell.cycle}${cell.spread_to ? ` on ${cell.spread_to}` : ""}: ${said(cell.state)}${value === null ? "" : `, ${quantity(PER_TOKEN, value, cell.energy_kind)}`}${cell.failures.length ? `, ${counted(cell.failures.length, "failed attempt")}` : ""}`,
      bg: `${colour}.subtle`,
      color: `${colour}.fg`,
      borderWidth: "2px",
      borderColor: chosen ? INK : "transparent",
      borderRadius: "sm",
      px: 2,
      py: 1,
      minW: "6.5rem",
      w: "100%",
      fontSize: "xs",
      textAlign: "start",
      cursor: "pointer",
      whiteSpace: "nowrap",
    },
    text,
    below && h("div", { style: { fontSize: "0.7rem" } }, below),
  );
}

function Key({ data }) {
  const states = [...new Set(data.experiments.flatMap((row) => row.cells.map((cell) => cell.state)))];
  const doubt = data.experiments.some((row) => row.cells.some((cell) => cell.state === "measured" && cell.doubtful));
  return h(
    UI.Flex,
    { gap: 3, wrap: "wrap", fontSize: "xs", color: "fg.muted", mt: 1 },
    states.map((state) => h("span", { key: state }, `${SIGNS[state] ?? "?"} ${said(state)}`)),
    doubt && h("span", null, "! measured, with a reason to doubt it"),
  );
}

const began = (kind) => ({ fresh: "a container of its own", exec: "a process of its own", warm: "in the session's loaded engine" })[kind] ?? kind ?? "";
const place = (position) => (position === 0 ? "first in its container" : position === null ? "" : `after ${counted(position, "attempt")}`);

/** Which cycles share a living container, in which order, and how its health was between them. */
function Sessions({ data, pick }) {
  const cells = new Map(data.experiments.flatMap((row) => row.cells.map((cell) => [`${row.id}.${cell.cycle}`, { ...cell, label: row.label }])));
  return h(
    Section,
    { title: "Sessions", "data-testid": "llem-sessions" },
    h(Muted, null, "Cycles that shared one living container. Choose a cycle for more."),
    h(PlainTable, {
      label: "Sessions",
      titles: ["Session", "Container", "Cycles in their order", "Health between cycles"],
      rows: data.sessions.map((one) => [one.id, h(Life, { session: one }), h(Order, { session: one, cells, pick }), h(Health, { session: one })]),
    }),
  );
}

function Life({ session }) {
  const lives = session.stop === "success" ? "removed" : session.start === "success" ? "lives" : "";
  const failed = [["start", session.start], ["stop", session.stop]].filter(([, state]) => state === "failed").map(([name]) => `${name} failed`);
  const restarts = session.restarts.map((why, at) => h("div", { key: at }, `started again: ${why}`));
  return h(Fragment, null, failed.join(", ") || lives || "not begun", restarts);
}

function Order({ session, cells, pick }) {
  return h(
    UI.Box,
    { as: "ol", pl: 5, listStyleType: "decimal" },
    session.cycles.map((one) => {
      const id = `${one.experiment}.${one.cycle}`;
      const cell = cells.get(id);
      const where = one.start_kind && `${began(one.start_kind)}, ${place(one.position)}`;
      return h(
        "li",
        { key: id },
        h("button", { type: "button", onClick: () => pick(id), style: { ...UNDERLINED, cursor: "pointer", textAlign: "start" } }, `${cell?.label ?? one.experiment}, cycle ${one.cycle}`),
        ` ${SIGNS[cell?.state] ?? "?"} ${where || said(cell?.state ?? "waiting")}`,
      );
    }),
  );
}

function Health({ session }) {
  if (session.unread) return h(Verbatim, { label: "Evidence that cannot be read" }, session.unread);
  if (!session.checks) return h(Muted, null, "not looked at yet");
  const [low, high] = session.temperature_c;
  const warm = low === undefined ? "" : `, GPU ${low === high ? low : `${low} to ${high}`} °C`;
  return h(
    Fragment,
    null,
    `${counted(session.checks, "check")}, ${session.problems.length ? counted(session.problems.length, "problem") : "nothing wrong"}${warm}`,
    session.problems.map((text, at) => h("div", { key: at }, text)),
  );
}

const PHASE = /^\[\s*([\d.]+) s\] (\S+)\s+(.*)$/;

/** What the cycles at work are doing, from the end of their logs: phase, progress, and who holds what they wait for. */
function Now({ cells, picked, dagId, runId, now }) {
  const shown = cells.slice(0, 4);
  return h(
    Section,
    { title: "Now" },
    shown.map((cell) => h(NowCell, { key: `${cell.row.id}.${cell.cycle}`, cell, chosen: picked === `${cell.row.id}.${cell.cycle}`, dagId, runId, now })),
    cells.length > shown.length && h(Muted, null, `and ${cells.length - shown.length} more`),
  );
}

function NowCell({ cell, chosen, dagId, runId, now }) {
  const [lines, setLines] = useState(null);
  useEffect(() => {
    const stop = new AbortController();
    logTail(dagId, runId, cell, stop.signal).then((found) => setLines(found), () => {
      if (!stop.signal.aborted) setLines((old) => old ?? []);
    });
    return () => stop.abort();
  }, [now, cell.try_number]);
  const told = (lines ?? []).filter((line) => line.trim());
  const last = told.findLast((line) => PHASE.test(line));
  const waits = told.findLast((line) => /Waiting for GPUs|Thermal gap|held by/.test(line));
  const [, , phase, text] = last?.match(PHASE) ?? [];
  const gone = cell.started_epoch_ns ? Math.max(0, (now - cell.started_epoch_ns) / 1e9) : null;
  return h(
    UI.Box,
    { borderWidth: "1px", borderRadius: "md", p: 2, mb: 2, "data-testid": "llem-now" },
    h(
      UI.Flex,
      { gap: 2, wrap: "wrap", align: "baseline" },
      h("strong", null, `${cell.row.label}, cycle ${cell.cycle}`),
      h(Tag, null, cell.state),
      phase && h(Tag, { colorPalette: "blue" }, phase),
      gone !== null && cell.state === "running" && h(Muted, null, `for ${duration(gone)}, try ${cell.try_number}`),
    ),
    cell.state === "running" && !chosen && h(Live, { asked: { dag_id: dagId, run_id: runId, experiment: cell.row.id, cycle: cell.cycle }, height: 110 }),
    (cell.state === "waiting" ? waits : text) && h(UI.Text, { fontSize: "sm" }, cell.state === "waiting" ? waits : text),
    h(Link, { to: taskPage(dagId, runId, cell), style: { ...UNDERLINED, fontSize: "0.875rem" } }, "Log of the task"),
  );
}

function Detail({ cell, row, dagId, runId }) {
  const facts = [
    ["State", said(cell.state)],
    ["Energy per output token", h(Fragment, null, quantity(PER_TOKEN, cell.energy_per_output_token_j, cell.energy_kind), h(Estimate, { kind: cell.energy_kind }))],
    ["Energy of the window", quantity(ENERGY, cell.energy_j, cell.energy_kind)],
    ["Output tokens per second", number(cell.output_tokens_per_s)],
    ["Began", when(cell.started_epoch_ns)],
    ...(cell.host || cell.spread_to ? [["Host", cell.host || cell.spread_to]] : []),
    ["Took, with start and load", duration(cell.duration_s)],
    ["Try", cell.try_number || "–"],
    ...(cell.session ? [["Session", `${cell.session}: ${began(cell.start_kind)}, ${place(cell.position_in_session)}`]] : []),
    ["Reasons to doubt", cell.flags.join(", ") || "none"],
  ];
  return h(
    Section,
    { title: `${row.label}, cycle ${cell.cycle}`, "data-testid": "llem-cell" },
    cell.reason && h(UI.Text, { mb: 2 }, cell.reason),
    cell.state === "running" && h(Live, { asked: { dag_id: dagId, run_id: runId, experiment: row.id, cycle: cell.cycle } }),
    h(Facts, { rows: facts }),
    h(
      UI.Flex,
      { gap: 4, mt: 2, fontSize: "sm" },
      cell.task_id && h(Link, { to: taskPage(dagId, runId, cell), style: UNDERLINED }, "Log of the task"),
      h(Link, { to: `?${new URLSearchParams({ view: "cycle", cell: `${row.id}.${cell.cycle}` })}`, style: UNDERLINED }, "Power, requests, environment, files"),
    ),
    cell.failures.map((failure) => h(Attempt, { key: `${failure.attempt}${failure.url}`, failure })),
  );
}

