// A new study: write, paste or drop its YAML, see what it would measure or what is wrong with it, and trigger it.

import { airflow, energyPage, Fragment, h, Link, ours, send, UI, useApi, useEffect, useRef, useState } from "./base.js";
import { Editor, goTo } from "./editor.js";
import { counted, duration } from "./format.js";
import { Facts, Loading, Muted, Notice, Page, Section, UNDERLINED } from "./parts.js";

const KEPT = "llem-new-study";
const PAUSE_MS = 500;

/** The text of the field, which a reload does not lose; it leaves with the tab of the browser. */
function useDraft() {
  const [text, setText] = useState(() => {
    try {
      return sessionStorage.getItem(KEPT) ?? "";
    } catch {
      return ""; // a browser may forbid it
    }
  });
  return [
    text,
    (next) => {
      setText(next);
      try {
        sessionStorage.setItem(KEPT, next);
      } catch {
        // then a reload loses it
      }
    },
  ];
}

/** What the server says of a text, once nothing was typed for half a second: `{text, data, error}` of the last answer. */
function useCheck(text) {
  const [state, setState] = useState({ text: "", data: null, error: null });
  useEffect(() => {
    if (!text.trim()) return undefined;
    const stop = new AbortController();
    const timer = setTimeout(async () => {
      try {
        const data = await send(ours("api/check", {}), text, { signal: stop.signal, type: "text/plain; charset=utf-8" });
        setState({ text, data, error: null });
      } catch (error) {
        if (!stop.signal.aborted) setState((old) => ({ text, data: old.data, error: error.message }));
      }
    }, PAUSE_MS);
    return () => {
      stop.abort();
      clearTimeout(timer);
    };
  }, [text]);
  return text.trim() ? state : { text, data: null, error: null };
}

export function NewStudyPage() {
  const { data: site, error } = useApi("new-study", {});
  const [text, setText] = useDraft();
  const [refused, setRefused] = useState("");
  const check = useCheck(text);
  const field = useRef(null);
  const title = { title: "New study", aside: h(Link, { to: "/plugin/llem-studies", style: UNDERLINED }, "All studies") };
  if (!site) return h(Page, title, error ? h(Notice, { kind: "error", title: error }) : h(Loading));
  const open = async (file) => {
    if (file.size > site.largest_bytes) {
      setRefused(`${file.name} has ${counted(file.size, "byte")}; a study has ${counted(site.largest_bytes, "byte")} here at most. Put a larger one into the folder of studies.`);
      return;
    }
    setRefused("");
    setText((await file.text()).replace(/\r\n?/g, "\n"));
  };
  const current = check.text === text;
  return h(
    Page,
    title,
    h(Tools, { text, example: site.example, open, setText }),
    refused && h(Notice, { kind: "warning", title: refused }),
    h(
      UI.Box,
      { display: "grid", gap: 4, gridTemplateColumns: { base: "minmax(0, 1fr)", xl: "minmax(0, 3fr) minmax(0, 2fr)" }, alignItems: "start" },
      h(Editor, {
        field,
        value: text,
        schema: site.schema,
        problems: (current && check.data?.problems.map((one) => ({ ...one, text: said(one) }))) || [],
        warnings: (current && check.data?.warnings.map((one) => ({ ...one, text: one.message }))) || [],
        onChange: setText,
        onFile: open,
      }),
      h("div", null, h(Verdict, { text, check, current, field }), h(Trigger, { site, text, ready: current && Boolean(check.data?.plan) })),
    ),
  );
}

const said = (one) => `${one.found}${one.allowed ? `; ${one.allowed}` : ""}${one.suggestion ? `. Did you mean ${one.suggestion}?` : ""}`;

function Tools({ text, example, open, setText }) {
  const input = useRef(null);
  const button = { size: "xs", variant: "outline" };
  return h(
    UI.Flex,
    { gap: 3, wrap: "wrap", align: "center", mb: 2 },
    h(UI.Button, { ...button, onClick: () => input.current.click() }, "Open a file"),
    h("input", {
      ref: input,
      type: "file",
      accept: ".yaml,.yml,text/plain",
      "aria-label": "Study file",
      hidden: true,
      onChange: (event) => {
        if (event.target.files.length) open(event.target.files[0]);
        event.target.value = ""; // the same file can be opened again
      },
    }),
    h(UI.Button, { ...button, disabled: text.trim() !== "", onClick: () => setText(example) }, "Start from the example"),
    h(UI.Button, { ...button, disabled: text === "", onClick: () => setText("") }, "Clear"),
    h(Muted, null, "Ctrl + Space: keys and values that fit. Nothing is stored or run before you trigger."),
  );
}

function Verdict({ text, check, current, field }) {
  if (!text.trim()) return h(Muted, null, "Nothing to check yet. A study is one question in YAML: which model, which settings are varied, how often.");
  if (check.error && current) return h(Notice, { kind: "error", title: "The study was not checked." }, h(UI.Text, { fontSize: "sm" }, check.error));
  if (!check.data || !current) return h(UI.Text, { role: "status", color: "fg.muted", fontSize: "sm" }, "Checking …");
  const { problems, more_problems: more, plan, warnings } = check.data;
  return h(
    Fragment,
    null,
    problems.length > 0 && h(Problems, { problems, more, field }),
    plan && h(Plan, { plan }),
    warnings.length > 0 && h(Told, { title: counted(warnings.length, "note"), label: "Notes", rows: warnings.map((one) => ({ ...one, column: 1, text: one.message })), field }),
  );
}

function Problems({ problems, more, field }) {
  const rows = problems.map((one) => ({ line: one.line, column: one.column, place: `${one.line}:${one.column}`, path: one.path, text: said(one) }));
  return h(
    UI.Box,
    { id: "llem-problems" },
    h(Told, { title: `${counted(problems.length + more, "problem")} to correct`, label: "Problems", rows, field }),
    more > 0 && h(Muted, null, `The first ${problems.length} are shown.`),
  );
}

function Told({ title, label, rows, field }) {
  return h(
    UI.Box,
    { mb: 4, "data-testid": `llem-${label.toLowerCase()}` },
    h(UI.Box, { role: "status", mb: 1 }, h(UI.Heading, { as: "h2", size: "md" }, title)),
    h(
      UI.Box,
      { as: "ol", listStyleType: "none", maxH: "24rem", overflow: "auto", tabIndex: 0, "aria-label": label },
      rows.map((one, index) =>
        h(
          UI.Box,
          { as: "li", key: index, fontSize: "sm", mb: 1 },
          one.line && h("button", { type: "button", onClick: () => goTo(field.current, one.line, one.column), style: { ...UNDERLINED, cursor: "pointer", marginRight: "0.6em" } }, `line ${one.place ?? one.line}`),
          one.path && h(UI.Box, { as: "code", mr: 2, fontWeight: "semibold" }, one.path),
          one.text,
        ),
      ),
    ),
  );
}

function Plan({ plan }) {
  const facts = [
    ["Points", `${counted(plan.declared, "point")} declared, ${plan.declared - plan.valid} left out`],
    ["Experiments", plan.unique === plan.valid ? `${plan.unique}` : `${plan.unique}; others of the ${plan.valid} are the same measurement`],
    ["Cycles", `${plan.unique} x ${plan.cycles} = ${plan.runs}, ${plan.order.replaceAll("_", " ")}`],
    ["Longest", `${duration(plan.longest_s)} one after the other, ${duration(plan.pauses_s)} of it pauses`],
    ...(plan.hosts.length ? [["Hosts", plan.hosts.map((one) => `${one.name}: ${counted(one.runs, "cycle")}`).join(", ")]] : []),
    ["GPUs", plan.gpus === null ? "1 where there is one" : plan.gpus || "none"],
  ];
  return h(
    Section,
    { title: `Plan of ${plan.name}`, mt: 0, mb: 4, "data-testid": "llem-plan" },
    h(Facts, { rows: facts }),
    plan.skipped.map((one) => h(UI.Text, { key: one.rule, fontSize: "sm", mt: 1 }, `${counted(one.points, "point")} left out: ${one.reason} [${one.rule}]`)),
    h(
      "details",
      { style: { marginTop: "0.5rem", fontSize: "0.875rem" }, open: plan.experiments.length <= 12 },
      h("summary", { style: { cursor: "pointer" } }, counted(plan.unique, "experiment")),
      h(
        UI.Box,
        { as: "ul", pl: 4, maxH: "20rem", overflow: "auto", tabIndex: 0, "aria-label": "Experiments" },
        plan.experiments.map((one) => h("li", { key: one.id }, h("code", null, one.id), `, ${one.model}, ${one.engine}${one.hosts.length ? `, on ${one.hosts.join(", ")}` : ""}`)),
      ),
      plan.unique > plan.experiments.length && h(Muted, null, `The first ${plan.experiments.length} are shown.`),
    ),
  );
}

/** Why the user cannot trigger, or null. */
function hindrance(site) {
  const { dag_id: id } = site;
  if (!site.known) return `The DAG ${id} measures studies that are pasted here. This Airflow has none that you may read: copy llem_adhoc.py of the package's dags folder into the DAG folder, or ask whoever looks after this Airflow.`;
  if (!site.may_trigger) return `You may check studies here, but not trigger ${id}. Whoever looks after this Airflow can give you that permission.`;
  return null;
}

function Trigger({ site, text, ready }) {
  const [dry, setDry] = useState(false);
  const [state, setState] = useState({ busy: false, runId: null, error: null });
  const why = hindrance(site);
  if (why) return h(Notice, { kind: "warning", title: why });
  const trigger = async () => {
    setState({ busy: true, runId: null, error: null });
    try {
      const body = JSON.stringify({ logical_date: null, conf: { [site.field]: text, dry_run: dry } });
      const run = await send(airflow(`dags/${encodeURIComponent(site.dag_id)}/dagRuns`), body, {
        known: { 403: `You may not trigger ${site.dag_id}.`, 404: `There is no DAG ${site.dag_id} any more.` },
      });
      setState({ busy: false, runId: run.dag_run_id, error: null });
    } catch (error) {
      setState({ busy: false, runId: null, error: error.message });
    }
  };
  const dag = h(Link, { to: `/dags/${encodeURIComponent(site.dag_id)}`, style: UNDERLINED }, site.dag_id);
  return h(
    UI.Box,
    { "data-testid": "llem-trigger" },
    site.paused && h(Notice, { kind: "warning" }, h(UI.Text, { fontSize: "sm" }, "The DAG ", dag, " is paused: a run waits until somebody unpauses it.")),
    h(
      UI.Flex,
      { gap: 4, align: "center", wrap: "wrap" },
      h(UI.Button, { size: "sm", colorPalette: "brand", disabled: !ready || state.busy, onClick: trigger }, state.busy ? "Triggering …" : dry ? "Trigger a dry run" : "Trigger"),
      h("label", { style: { fontSize: "0.875rem" } }, h("input", { type: "checkbox", checked: dry, onChange: (event) => setDry(event.target.checked) }), " Dry run: check on the worker, measure nothing"),
    ),
    state.error && h(Notice, { kind: "error", title: "The study was not triggered." }, h(UI.Text, { fontSize: "sm" }, state.error)),
    state.runId && h(Notice, { title: "The run has been triggered." }, h(Link, { to: energyPage(site.dag_id, state.runId), style: UNDERLINED }, `Watch ${state.runId}`)),
  );
}
