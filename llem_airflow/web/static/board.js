// The leaderboard: model x hardware x engine by joules per output token, within a latency limit, workload by workload.

import { energyPage, Fragment, h, Link, UI, useAddress, useApi, useEffect, useRef } from "./base.js";
import { counted, interval, number, quantity, spread, when } from "./format.js";
import { Choose, DataTable, FIELD, Loading, Muted, MUTED, Notice, Page, Section, Tag, UNDERLINED } from "./parts.js";

const ENERGY = { label: "Energy per output token", unit: "J/token", energy: true };
const SECONDS = { label: "", unit: "s" };
const SPEED = { label: "", unit: "token/s" };

export const LeaderboardPage = () =>
  h(
    Page,
    { title: "Energy leaderboard", aside: h(Link, { to: "/plugin/llem-studies", style: UNDERLINED }, "All studies") },
    h(Leaderboard),
  );

function Leaderboard() {
  const [latency, setLatency] = useAddress("latency", "ttft_mean_s");
  const [limit, setLimit] = useAddress("limit_ms");
  const known = limit === "" || Number(limit) > 0;
  const { data, error } = useApi("leaderboard", [["latency", latency], ...(limit !== "" && known ? [["limit_s", String(Number(limit) / 1000)]] : [])]);
  if (error) return h(Notice, { kind: "error", title: error });
  if (!data) return h(Loading);
  return h(
    UI.Box,
    { "data-testid": "llem-leaderboard" },
    h(
      UI.Flex,
      { gap: 3, wrap: "wrap", mb: 2, align: "center" },
      h(Choose, { label: "Limit on", value: data.latency.name, options: data.latencies.map((one) => [one.name, one.label]), onChange: setLatency }),
      h(Milliseconds, { value: limit, onChange: setLimit }),
      !known && h(Muted, null, "Type a number of milliseconds above 0, or nothing for no limit."),
    ),
    h(Muted, null, `Mean over cycles of the newest run of each study and release that you may read: ${counted(data.runs, "run")}. Each model, hardware and engine stands with the configuration that takes the fewest joules within the limit; a server with the cheapest of its rates, or numbers of users, that is within the limit, or without one meets its study's SLO, and is not saturated. Only what was asked the same is compared.`),
    data.problems.map((text) => h(Notice, { key: text, kind: "warning", title: text })),
    data.boards.length
      ? data.boards.map((board, place) => h(Board, { key: board.workload, board, data, place }))
      : h(Notice, { title: "No run that you may read has energy per output token yet." }, h(Muted, null, "Trigger a study whose meter reads power; its experiments appear here when its run was aggregated.")),
  );
}

function Milliseconds({ value, onChange }) {
  const field = useRef(null);
  useEffect(() => {
    if (document.activeElement !== field.current) field.current.value = value;
  }, [value]);
  return h(
    "label",
    { style: { fontSize: "0.875rem" } },
    h("span", { style: { color: MUTED } }, "at most "),
    h("input", { ref: field, type: "number", min: 0, step: "any", defaultValue: value, "aria-label": "Limit, in milliseconds", onChange: (event) => onChange(event.target.value), style: { ...FIELD, width: "7rem" } }),
    " ms",
  );
}

function Board({ board, data, place }) {
  const rows = [
    ...board.ranked.map((one) => ({ ...one, why: one.level ? "level with the first" : "" })),
    ...board.beyond.map((one) => ({ ...one, rank: null, why: one.saturated ? "saturated" : data.limit_s === null ? "misses its SLO" : "beyond the limit" })),
    ...board.unknown.map((one) => ({ ...one, rank: null, why: "latency not known" })),
  ];
  const columns = columnsOf(data);
  const key = (row) => `${row.source.dag_id} ${row.source.run_id} ${row.source.experiment}`;
  return h(
    Section,
    { title: `Workload: ${board.workload}`, "data-testid": "llem-board" },
    rows.length > 0 && h(DataTable, { name: `board${place}`, label: `Leaderboard of ${board.workload}`, columns, rows, rowKey: key }),
    board.apart.length > 0 &&
      h(
        Fragment,
        null,
        h(UI.Heading, { as: "h3", size: "sm", mt: 3, mb: 1 }, "Not measured, and so without a rank"),
        h(DataTable, { name: `apart${place}`, label: `Estimates of ${board.workload}`, columns: columns.filter((one) => one.key !== "rank"), rows: board.apart.map((one) => ({ ...one, rank: null, why: one.energy_kind })), rowKey: key }),
      ),
  );
}

const columnsOf = (data) => [
  { key: "rank", title: "Rank", number: true, value: (row) => row.rank },
  { key: "model", title: "Model", value: (row) => row.model },
  {
    key: "energy",
    title: "Energy per output token",
    number: true,
    value: (row) => row.energy_per_output_token_j,
    cell: (row) => h(Fragment, null, `${row.energy_kind === "measured" ? "" : "~ "}${quantity(ENERGY, row.energy_per_output_token_j)}`, h("div", { style: { opacity: 0.75, fontSize: "0.75rem" } }, (row.hosts > 1 ? spread : interval)(ENERGY, { mean: row.energy_per_output_token_j, low: row.low_j, high: row.high_j, n: row.n, hosts: row.hosts }))),
  },
  { key: "hardware", title: "Hardware", value: (row) => row.hardware },
  { key: "engine", title: "Engine", value: (row) => row.engine },
  { key: "why", title: "Note", value: (row) => row.why || null, cell: (row) => (row.why ? h(Tag, null, row.why) : null) },
  { key: "latency", title: data.latency.label, number: true, value: (row) => row.latency_s, cell: (row) => quantity(SECONDS, row.latency_s) },
  { key: "speed", title: "Output tokens per second", number: true, value: (row) => row.output_tokens_per_s, cell: (row) => (row.output_tokens_per_s === null ? null : `${number(row.output_tokens_per_s)} ${SPEED.unit}`) },
  { key: "label", title: "Configuration", value: (row) => row.source.label, cell: (row) => h(Link, { to: energyPage(row.source.dag_id, row.source.run_id), style: UNDERLINED, title: row.source.experiment }, row.source.label) },
  { key: "tried", title: "Tried", help: "Configurations of this model, hardware and engine", number: true, hidden: true, value: (row) => row.tried ?? null },
  { key: "study", title: "Study", value: (row) => row.source.study },
  { key: "release", title: "Release", hidden: true, value: (row) => row.source.release || null },
  { key: "when", title: "Measured", value: (row) => row.source.started_epoch_ns, cell: (row) => h("span", { style: { whiteSpace: "nowrap" } }, when(row.source.started_epoch_ns)) },
];
