// All studies with their headlines, the runs of one DAG, and the card on Airflow's first page.

import { energyPage, Fragment, h, Link, UI, useAddress, useApi } from "./base.js";
import { Comparison } from "./compare.js";
import { change, counted, cycles, interval, quantity, when } from "./format.js";
import { Choose, DataTable, Estimate, Loading, Muted, Notice, Page, Search, Tabs, Tag, UNDERLINED } from "./parts.js";
import { Spark } from "./plots.js";
import { Trend } from "./trend.js";

const trendPage = (dagId, state) => `/dags/${encodeURIComponent(dagId)}/plugin/llem-study?${new URLSearchParams({ view: "trend", ...state })}`;
const MINUTE = 60000;

export function StudiesPage() {
  const { data, error } = useApi("studies", {}, () => MINUTE);
  if (error && !data) return h(Page, { title: "Energy studies" }, h(Notice, { kind: "error", title: error }));
  if (!data) return h(Page, { title: "Energy studies" }, h(Loading));
  return h(
    Page,
    { title: "Energy studies", aside: h(Fragment, null, h(Muted, null, data.studies.length === 1 ? "1 study" : `${data.studies.length} studies`), h(Link, { to: "/plugin/llem-studies?page=leaderboard", style: UNDERLINED }, "Leaderboard"), h(Link, { to: "/plugin/llem-studies?page=new", style: UNDERLINED }, "New study")) },
    data.studies.length === 0
      ? h(
          Notice,
          { title: "There is no study yet whose DAG you may read." },
          h(UI.Text, { fontSize: "sm" }, `Trigger a DAG of a study, or write a new study; its results appear here. Results are looked for under ${data.root} (option results_root of section [llem]).`),
        )
      : h(List, { rows: data.studies }),
  );
}

function List({ rows }) {
  const [text, setText] = useAddress("find");
  const [state, setState] = useAddress("state", "all");
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const found = rows.filter(
    (row) =>
      (state === "all" || row.state === state) && words.every((word) => `${row.study} ${row.dag_id}`.toLowerCase().includes(word)),
  );
  const states = [...new Set(rows.map((row) => row.state).filter(Boolean))];
  return h(
    Fragment,
    null,
    h(
      UI.Flex,
      { gap: 3, wrap: "wrap", mb: 3, align: "center" },
      h(Search, { label: "Find a study", value: text, onChange: setText }),
      h(Choose, { label: "Last run", value: state, options: ["all", ...states].map((one) => [one, one]), onChange: setState }),
      found.length < rows.length && h(Muted, null, `${found.length} of ${rows.length}`),
    ),
    h(
      UI.Box,
      { as: "ul", listStyleType: "none", "data-testid": "llem-studies" },
      found.map((row) => h(Study, { key: `${row.dag_id} ${row.study}`, row })),
    ),
  );
}

function Study({ row }) {
  const { data, error } = useApi("headline", { dag_id: row.dag_id, study: row.folder }, () => (row.state === "running" ? MINUTE : null));
  const label = { color: "fg.muted", fontSize: "xs" };
  return h(
    UI.Box,
    { as: "li", borderWidth: "1px", borderRadius: "md", p: 3, mb: 2, display: "grid", gap: 3, gridTemplateColumns: "repeat(auto-fit, minmax(min(100%, 12rem), 1fr))", alignItems: "start" },
    h(
      UI.Box,
      null,
      h(Link, { to: `/dags/${encodeURIComponent(row.dag_id)}/plugin/llem-study`, style: { ...UNDERLINED, fontWeight: 600 } }, row.study),
      row.dag_id !== row.study && h(Muted, null, row.dag_id),
      h(Muted, null, counted(row.runs, "run")),
    ),
    h(
      UI.Box,
      null,
      h(UI.Text, label, "Last run"),
      h(Link, { to: energyPage(row.dag_id, row.run_id), style: UNDERLINED }, when(row.started_epoch_ns)),
      row.state && h(UI.Box, null, h(Tag, null, row.state)),
    ),
    error
      ? h(UI.Box, null, h(Muted, null, error))
      : h(Headline, { data, label, row }),
    h(Since, { since: data?.since, dagId: row.dag_id, label }),
    h(
      UI.Box,
      null,
      h(UI.Text, label, "Next run"),
      h(UI.Text, { fontSize: "sm" }, row.paused ? "paused" : row.next_epoch_ns ? when(row.next_epoch_ns) : "not scheduled"),
    ),
  );
}

function Headline({ data, label, row }) {
  const found = data?.number;
  if (!data) return h(UI.Box, null, h(Loading));
  if (!found) return h(UI.Box, null, h(UI.Text, label, "Result"), h(Muted, null, "none yet"));
  const values = data.history.map((one) => one.mean);
  const older = data.run_id !== row.run_id && data.history.at(-1);
  return h(
    UI.Box,
    { "data-testid": "llem-headline" },
    h(UI.Text, label, found.metric.label),
    h(UI.Text, { fontWeight: "semibold" }, quantity(found.metric, found.mean, found.energy_kind), found.metric.energy && h(Estimate, { kind: found.energy_kind })),
    h(UI.Text, { fontSize: "sm" }, `${found.low === null ? "" : `${interval(found.metric, found)}, `}${cycles(found.n, found.hosts)}`),
    found.experiments > 1 && h(Muted, null, `${found.label}, the ${found.metric.better === "lower" ? "lowest" : "highest"} of ${found.experiments}`),
    h(Muted, null, `${data.valid} of ${data.planned} cycles valid${older ? `, in the run of ${when(older.started_epoch_ns)}` : ""}`),
    h(
      Link,
      { to: trendPage(row.dag_id, { study: row.folder, metric: found.metric.name, experiments: found.experiment }), "aria-label": `Trend of ${row.study}` },
      h(Spark, {
        values,
        changes: data.history.flatMap((one, place) => (one.change_ratio === null ? [] : [place])),
        label: `${found.metric.label} of the last ${values.length} runs, from ${quantity(found.metric, values[0], found.energy_kind)} to ${quantity(found.metric, values.at(-1), found.energy_kind)}${changed(data.history)}`,
      }),
      values.length < 2 && h("span", { style: { ...UNDERLINED, fontSize: "0.875rem" } }, "Trend"),
    ),
  );
}

const changed = (history) =>
  history
    .filter((one) => one.change_ratio !== null)
    .map((one) => `; ${change(one.change_ratio)} from ${when(one.started_epoch_ns)} on`)
    .join("");

function Since({ since, dagId, label }) {
  if (!since) return h(UI.Box, null, h(UI.Text, label, "Since the run before"), h(Muted, null, "no comparison"));
  const others = Object.entries(since.verdicts);
  return h(
    UI.Box,
    null,
    h(UI.Text, label, "Since ", h(Link, { to: energyPage(dagId, since.run_id), style: UNDERLINED }, "the run before")),
    since.problem ? h(Muted, null, since.problem) : null,
    since.verdict && h(Tag, null, since.verdict),
    since.ratio !== null && h(UI.Text, { fontSize: "sm" }, `${change(since.ratio)}${since.low_ratio === null ? "" : ` (${change(since.low_ratio)} to ${change(since.high_ratio)})`}`),
    others.length > 0 && h(Muted, null, others.map(([verdict, count]) => `${count} ${verdict}`).join(", ")),
  );
}

const VIEWS = [
  ["runs", "Runs"],
  ["trend", "Trend"],
  ["compare", "Comparison"],
];

/** The Energy tab of a DAG: its runs, and how their numbers went. */
export function DagPage({ dagId }) {
  const [view, setView] = useAddress("view", "runs");
  return h(
    Page,
    { title: "Energy" },
    h(Tabs, { label: "Views", value: view, options: VIEWS, onChange: setView }),
    view === "trend" ? h(Trend, { dagId }) : view === "compare" ? h(Comparison, { dagId }) : h(RunsOfDag, { dagId }),
  );
}

function RunsOfDag({ dagId }) {
  const { data, error } = useApi("runs", { dag_id: dagId }, () => MINUTE);
  if (error && !data) return h(Notice, { kind: "error", title: error });
  if (!data) return h(Loading);
  if (!data.runs.length) return h(Muted, null, "No run of this DAG has measured energy. If it is the DAG of a study, trigger it: each run has an Energy tab of its own.");
  const number = (row) => row.number;
  const columns = [
    { key: "started", title: "Began", value: (row) => row.started_epoch_ns, cell: (row) => h(Link, { to: energyPage(dagId, row.run_id), style: UNDERLINED }, row.started_epoch_ns ? when(row.started_epoch_ns) : row.run_id) },
    { key: "run", title: "Run", value: (row) => row.run_id },
    { key: "study", title: "Study", hidden: new Set(data.runs.map((row) => row.study)).size === 1, value: (row) => row.study },
    { key: "release", title: "Release", hidden: data.runs.every((row) => !row.release), value: (row) => row.release },
    { key: "valid", title: "Valid", number: true, value: (row) => row.valid ?? null, cell: (row) => (row.planned === undefined ? "not aggregated" : `${row.valid} of ${row.planned}`) },
    {
      key: "best",
      title: "Best experiment",
      number: true,
      value: (row) => number(row)?.mean ?? null,
      cell: (row) =>
        number(row) &&
        h(Fragment, null, quantity(number(row).metric, number(row).mean, number(row).energy_kind), h("div", { style: { opacity: 0.75, fontSize: "0.75rem" } }, interval(number(row).metric, number(row)))),
    },
    { key: "label", title: "Which", value: (row) => number(row)?.label ?? null },
  ];
  return h(DataTable, { name: "runs", label: "Runs", columns, rows: data.runs, rowKey: (row) => row.run_id });
}

/** A few lines on Airflow's first page; nothing where the user sees no study. */
export function Card() {
  const { data } = useApi("studies", {}, () => MINUTE);
  if (!data?.studies.length) return null;
  const running = data.studies.filter((row) => row.state === "running");
  const failed = data.studies.filter((row) => row.state === "failed");
  return h(
    UI.Flex,
    { "data-testid": "llem-card", gap: 3, wrap: "wrap", align: "baseline", borderWidth: "1px", borderRadius: "md", p: 2, mb: 2, fontSize: "sm" },
    h(Link, { to: "/plugin/llem-studies", style: { ...UNDERLINED, fontWeight: 600 } }, "Energy studies"),
    h("span", null, `${data.studies.length} measured`),
    running.length > 0 && h("span", null, "running: ", running.slice(0, 3).map((row, place) => h(Fragment, { key: row.dag_id }, place > 0 && ", ", h(Link, { to: energyPage(row.dag_id, row.run_id), style: UNDERLINED }, row.study)))),
    failed.length > 0 && h("span", null, "last run failed: ", failed.slice(0, 3).map((row, place) => h(Fragment, { key: row.dag_id }, place > 0 && ", ", h(Link, { to: energyPage(row.dag_id, row.run_id), style: UNDERLINED }, row.study)))),
  );
}
