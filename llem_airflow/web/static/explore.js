// The explorer of a run: its answer, factors, energy against speed, the table, the distributions.

import { Fragment, h, ours, UI, useAddress, useApi } from "./base.js";
import { counted, ended, interval, isEstimate, natural, number, scaleOf, sentence, short, shortKey } from "./format.js";
import { Parallel } from "./parallel.js";
import { Choose, DataTable, Estimate, Loading, Muted, Notice, Section, Tabs, UNDERLINED, Verbatim } from "./parts.js";
import { Distribution, FactorPlot, Legend, Pareto } from "./plots.js";

const ENERGY = "energy_per_output_token_j";
/** What a server's numbers are first looked at over. */
const LOADS = ["server.traffic.rate", "server.traffic.concurrency"];

export function Explorer({ dagId, runId, preliminary }) {
  const { data, error } = useApi("explore", { dag_id: dagId, run_id: runId });
  const [wanted, setPlot] = useAddress("plot", "factors");
  const [metricName, setMetric] = useAddress("metric", ENERGY);
  if (error) return h(Notice, { kind: "error", title: "The results of this run cannot be read" }, h(Verbatim, { label: "What is wrong" }, error));
  if (!data) return h(Loading);
  const metric = data.metrics.find((one) => one.name === metricName) ?? data.metrics[0];
  const plots = [
    ["factors", "Factors"],
    ...(data.factors.length > 1 ? [["parallel", "All factors"]] : []),
    ...(Object.keys(data.fronts).length ? [["pareto", "Energy against speed"]] : []),
    ["cycles", "Distributions"],
  ];
  const plot = plots.some(([key]) => key === wanted) ? wanted : "factors";
  return h(
    Fragment,
    null,
    preliminary && h(Notice, { kind: "warning", title: "Preliminary: the run is still at work, and these are the results of an earlier aggregate." }),
    data.answer && h(UI.Text, { "data-testid": "llem-answer", fontSize: "lg", fontWeight: "medium" }, data.answer),
    data.load.length > 0 && h(UI.Box, { as: "ul", "data-testid": "llem-load", pl: 5, listStyleType: "disc" }, data.load.map((text) => h("li", { key: text }, text))),
    h(Muted, null, `${data.valid} of ${counted(data.planned, "planned cycle")} ${data.planned === 1 ? "is" : "are"} valid. ${setting(data.setting)}`),
    data.energy_kind === "estimate" && h(Notice, { title: "Energies here are estimates: no power meter was read." }),
    data.problems.map((text) => h(Notice, { key: text, kind: "warning", title: text })),
    h(Missing, { data }),
    metric
      ? h(
          Section,
          { title: null },
          h(Tabs, { label: "Pictures", value: plot, options: plots, onChange: setPlot }),
          plot === "pareto" ? h(Tradeoff, { data }) : plot === "cycles" ? h(Cycles, { data, metric, setMetric, dagId, runId }) : plot === "parallel" ? h(AllFactors, { data, metric, setMetric }) : h(Factors, { data, metric, setMetric }),
        )
      : h(Notice, { title: "No cycle of this run has a number. The view Cycles says why." }),
    h(Runs, { data, dagId, runId }),
    h(Doubts, { data }),
  );
}

function setting(found) {
  const names = ["model", "engine", "hardware", "driver", "host", "release"];
  return names
    .filter((name) => found[name]?.length)
    .map((name) => `${name}: ${[found[name]].flat().map(String).join(", ")}`)
    .join(" · ");
}

function Missing({ data }) {
  if (!data.missing.length) return null;
  const labels = new Map(data.experiments.map((one) => [one.id, one.label]));
  return h(
    Notice,
    { kind: "warning", title: `${counted(data.missing.length, "planned cycle")} without a result` },
    h(
      UI.Box,
      { as: "ul", pl: 5, listStyleType: "disc", fontSize: "sm" },
      data.missing.slice(0, 10).map((one) =>
        h("li", { key: `${one.experiment}${one.cycle}` }, `${labels.get(one.experiment) ?? one.experiment}, cycle ${one.cycle}: ${one.reason.replace(/\.$/, "")}.${one.next_step ? ` Next step: ${one.next_step}` : ""}`),
      ),
      data.missing.length > 10 && h("li", { key: "more" }, `and ${data.missing.length - 10} more`),
    ),
  );
}

const MetricChoice = ({ data, metric, setMetric }) =>
  h(Choose, { label: "Metric", value: metric.name, options: data.metrics.map((one) => [one.name, one.label]), onChange: setMetric });

const titled = (metric, scale, estimate) => `${metric.label}, ${scale.unit}${estimate ? " (estimate)" : ""}`;
const largest = (experiments, name) => Math.max(...experiments.map((one) => Math.abs(one.metrics[name]?.mean ?? 0)), 0);
const estimated = (experiments, metric) => experiments.some((one) => isEstimate(metric, one.energy_kind));

function Factors({ data, metric, setMetric }) {
  const factors = data.factors;
  const first = LOADS.find((key) => factors.includes(key)) ?? factors[0] ?? "";
  const rest = factors.filter((key) => key !== first);
  const [xName, setX] = useAddress("x", first);
  const [colour, setColour] = useAddress("colour", rest[0] ?? "");
  const [facet, setFacet] = useAddress("facet", rest[1] ?? "");
  const known = data.experiments.filter((one) => one.metrics[metric.name]);
  const x = factors.includes(xName) ? xName : first;
  const scale = scaleOf(metric, largest(known, metric.name));
  const at = (one, key) => (key ? short(one.factors[key]) : "");
  const groups = [...new Set(known.map((one) => at(one, colour)))].sort(natural);
  const facets = [...new Set(known.map((one) => at(one, facet)))].sort(natural);
  const numeric = known.every((one) => typeof one.factors[x] === "number");
  const options = (none) => [...(none ? [["-", none]] : []), ...factors.map((key) => [key, shortKey(key)])];
  const ordered = x && !numeric ? [...known].sort((a, b) => natural(short(a.factors[x]), short(b.factors[x]))) : known;
  const points = ordered.map((one) => {
    const found = one.metrics[metric.name];
    return {
      key: one.id,
      label: one.label,
      facet: at(one, facet),
      group: at(one, colour),
      x: x ? (numeric ? one.factors[x] : short(one.factors[x])) : one.label,
      y: found.mean * scale.factor,
      low: found.low === null ? null : found.low * scale.factor,
      high: found.high === null ? null : found.high * scale.factor,
    };
  });
  return h(
    Fragment,
    null,
    h(
      UI.Flex,
      { gap: 3, wrap: "wrap", mb: 2 },
      h(MetricChoice, { data, metric, setMetric }),
      factors.length > 0 && h(Choose, { label: "x", value: x, options: options(), onChange: setX }),
      factors.length > 1 && h(Choose, { label: "Colour", value: colour || "-", options: options("none"), onChange: setColour }),
      factors.length > 1 && h(Choose, { label: "Facet", value: facet || "-", options: options("none"), onChange: setFacet }),
    ),
    h(Legend, { title: shortKey(colour), groups: groups.filter(Boolean) }),
    h(
      "div",
      { "data-testid": "llem-factors", style: { display: "grid", gridTemplateColumns: `repeat(auto-fit, minmax(min(100%, ${facets.length > 1 ? "22rem" : "100%"}), 1fr))`, gap: "0.5rem", maxWidth: facets.length > 1 ? "100%" : "60rem" } },
      facets.map((value) =>
        h(
          "figure",
          { key: value, style: { minWidth: 0 } },
          facets.length > 1 && h("figcaption", { style: { fontSize: "0.875rem" } }, `${shortKey(facet)} ${value}`),
          h(FactorPlot, {
            points: points.filter((one) => one.facet === value),
            groups,
            xTitle: x ? shortKey(x) : "experiment",
            yTitle: titled(metric, scale, estimated(known, metric)),
            label: `${metric.label} by ${x ? shortKey(x) : "experiment"}: means and 95 % intervals of ${counted(known.length, "experiment")}; the table below has the numbers`,
          }),
        ),
      ),
    ),
    h(Muted, null, `Means over cycles with 95 % intervals, which are drawn from 3 cycles on. ${sentence(metric.meaning)}.`),
  );
}

const AllFactors = ({ data, metric, setMetric }) =>
  h(Fragment, null, h(UI.Flex, { gap: 3, wrap: "wrap", mb: 2 }, h(MetricChoice, { data, metric, setMetric })), h(Parallel, { data, metric }));

function Tradeoff({ data }) {
  const names = Object.keys(data.fronts);
  const [against, setAgainst] = useAddress("against", names[0]);
  const [colour, setColour] = useAddress("colour", data.factors[1] ?? "");
  const name = names.includes(against) ? against : names[0];
  const [xMetric, yMetric] = [name, ENERGY].map((key) => data.metrics.find((one) => one.name === key));
  const known = data.experiments.filter((one) => one.metrics[name] && one.metrics[ENERGY]);
  const [xs, ys] = [xMetric, yMetric].map((metric) => scaleOf(metric, largest(known, metric.name)));
  const group = (one) => (colour && colour !== "-" ? short(one.factors[colour]) : "");
  const groups = [...new Set(known.map(group))].sort(natural);
  const ends = (found, factor) => (found.low === null ? [null, null] : [found.low * factor, found.high * factor]);
  const points = known.map((one) => {
    const [x, y] = [one.metrics[name], one.metrics[ENERGY]];
    const [xLow, xHigh] = ends(x, xs.factor);
    const [yLow, yHigh] = ends(y, ys.factor);
    return { key: one.id, label: one.label, group: group(one), x: x.mean * xs.factor, y: y.mean * ys.factor, xLow, xHigh, yLow, yHigh };
  });
  return h(
    Fragment,
    null,
    h(
      UI.Flex,
      { gap: 3, wrap: "wrap", mb: 2 },
      h(Choose, { label: "Against", value: name, options: names.map((key) => [key, data.metrics.find((one) => one.name === key).label]), onChange: setAgainst }),
      data.factors.length > 0 && h(Choose, { label: "Colour", value: colour || "-", options: [["-", "none"], ...data.factors.map((key) => [key, shortKey(key)])], onChange: setColour }),
    ),
    h(Legend, { title: shortKey(colour), groups: groups.filter(Boolean) }),
    h(
      "div",
      { "data-testid": "llem-pareto", style: { maxWidth: "70rem" } },
      h(Pareto, {
        points,
        groups,
        front: new Set(data.fronts[name]),
        better: xMetric.better,
        xTitle: titled(xMetric, xs, estimated(known, xMetric)),
        yTitle: titled(yMetric, ys, estimated(known, yMetric)),
        label: `${yMetric.label} against ${xMetric.label} of ${counted(points.length, "experiment")}; unbeaten: ${known.filter((one) => data.fronts[name].includes(one.id)).map((one) => one.label).join(", ")}`,
      }),
    ),
    h(Muted, null, data.fronts[name].length ? "Filled and joined: no other experiment is better in both, as far as the 95 % intervals tell." : "None is filled: that takes two experiments with 95 % intervals, which 3 cycles give."),
  );
}

function Cycles({ data, metric, setMetric, dagId, runId }) {
  const { data: found, error } = useApi("values", { dag_id: dagId, run_id: runId, metric: metric.name });
  const known = data.experiments.filter((one) => one.metrics[metric.name]);
  const scale = scaleOf(metric, largest(known, metric.name));
  const all = new Map();
  for (const one of found?.cycles ?? [])
    all.set(one.experiment, [...(all.get(one.experiment) ?? []), { ...one, value: one.value * scale.factor }]);
  const rows = known.map((one) => {
    const told = one.metrics[metric.name];
    const times = (value) => (value === null ? null : value * scale.factor);
    return { key: one.id, label: one.label, n: told.n, hosts: told.hosts, mean: told.mean * scale.factor, low: times(told.low), high: times(told.high), values: all.get(one.id) ?? [] };
  });
  return h(
    Fragment,
    null,
    h(UI.Flex, { gap: 3, wrap: "wrap", mb: 2 }, h(MetricChoice, { data, metric, setMetric })),
    error && h(Notice, { kind: "warning", title: error }),
    h(
      "div",
      { "data-testid": "llem-distribution", style: { maxWidth: "70rem" } },
      h(Distribution, { rows, xTitle: titled(metric, scale, estimated(known, metric)), label: `${metric.label} of every cycle, by experiment` }),
    ),
    h(Muted, null, "A dot is a cycle, a cross one with a reason to doubt it; the line is the mean, the bar its 95 % interval."),
  );
}

function Runs({ data, dagId, runId }) {
  const metricColumn = (metric, place) => {
    const scale = scaleOf(metric, largest(data.experiments, metric.name));
    return {
      key: metric.name,
      title: `${metric.label}, ${scale.unit}`,
      help: metric.meaning,
      number: true,
      hidden: place >= order.length,
      value: (row) => row.metrics[metric.name]?.mean ?? null,
      cell: (row) => {
        const found = row.metrics[metric.name];
        if (!found) return null;
        const sign = isEstimate(metric, row.energy_kind) ? "~ " : "";
        return h(Fragment, null, `${sign}${number(found.mean * scale.factor)}`, h("div", { style: { opacity: 0.75, fontSize: "0.75rem" } }, interval(metric, found, scale)));
      },
    };
  };
  const order = [ENERGY, "output_tokens_per_s", "ttft_mean_s", "tpot_mean_s", "average_power_w", "slo_attainment_ratio", "energy_per_good_request_j"].filter((name) => data.metrics.some((one) => one.name === name));
  const place = (name) => (order.includes(name) ? order.indexOf(name) : order.length);
  const metrics = [...data.metrics].sort((a, b) => place(a.name) - place(b.name));
  const columns = [
    { key: "experiment", title: "Experiment", value: (row) => row.label, cell: (row) => h("span", { title: row.id }, row.label) },
    ...data.factors.map((key) => ({ key, title: shortKey(key), help: key, number: data.experiments.every((one) => typeof one.factors[key] === "number"), value: (row) => row.factors[key], cell: (row) => short(row.factors[key]) })),
    { key: "valid", title: "Valid", number: true, value: (row) => row.valid, cell: (row) => `${row.valid} of ${row.planned}` },
    ...(data.experiments.some((row) => row.hosts.length) ? [{ key: "hosts", title: "Hosts", help: "Means and intervals are within hosts", value: (row) => row.hosts.join(", ") || "one" }] : []),
    ...metrics.map(metricColumn),
    { key: "energy_kind", title: "Energy is", hidden: data.energy_kind !== "mixed", value: (row) => row.energy_kind, cell: (row) => (row.energy_kind === "estimate" ? h(Estimate, { kind: "estimate" }) : row.energy_kind) },
    { key: "energy_source", title: "Source", hidden: true, value: (row) => row.energy_source },
    { key: "doubts", title: "Doubts", value: (row) => row.doubts.filter((one) => one.severity !== "info").map((one) => one.code).join(", ") },
  ];
  const get = (table, format) => ours("download/table", { dag_id: dagId, run_id: runId, table, format });
  return h(
    Section,
    { title: "Experiments", "data-testid": "llem-experiments" },
    h(DataTable, { name: "table", label: "Experiments", columns, rows: data.experiments, rowKey: (row) => row.id }),
    h(
      UI.Flex,
      { gap: 3, wrap: "wrap", fontSize: "sm", mt: 2 },
      h(Muted, null, "Download:"),
      Object.entries({ csv: "CSV", json: "JSON", parquet: "Parquet" }).flatMap(([form, title]) =>
        ["experiments", "cycles"].map((table) => h("a", { key: form + table, href: get(table, form), download: "", style: UNDERLINED }, `${table}, ${title}`)),
      ),
      h("a", { href: ours("download/file", { dag_id: dagId, run_id: runId, name: "summary.json" }), download: "", style: UNDERLINED }, "summary.json"),
    ),
  );
}

function Doubts({ data }) {
  const found = new Map();
  for (const one of data.experiments)
    for (const doubt of one.doubts) {
      const key = `${doubt.code}${doubt.message}`;
      found.set(key, { ...doubt, places: [...(found.get(key)?.places ?? []), one.label] });
    }
  if (!found.size) return null;
  return h(
    Section,
    { title: "Reasons to doubt" },
    [...found.values()].map((one) =>
      h(
        UI.Box,
        { key: one.code + one.message, mb: 2, fontSize: "sm" },
        h("strong", null, `${one.severity}: ${one.code}`),
        ` ${ended(sentence(one.message))} `,
        h("em", null, `${ended(sentence(one.next_step))} `),
        h("span", { style: { opacity: 0.8 } }, one.places.length > 3 ? `${one.places.slice(0, 3).join("; ")} and ${one.places.length - 3} more` : one.places.join("; ")),
      ),
    ),
  );
}
