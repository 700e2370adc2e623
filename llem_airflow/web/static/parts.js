// Parts of pages: sections, notices, choosers, a table that sorts, filters and hides columns.

import { Fragment, h, UI, useAddress, useEffect, useRef, useState } from "./base.js";
import { ABSENT, counted } from "./format.js";

const css = (name) => `var(--chakra-colors-${name})`;
export const UNDERLINED = { textDecoration: "underline" };
export const INK = css("fg");
export const MUTED = css("fg-muted");
export const LINE = css("border");
export const PAPER = css("bg");
// Okabe and Ito's palette without its yellow, which white paper swallows; every mark also differs in shape or text.
export const SERIES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F"];
/** Colour of a line, and dashes where there are more lines than colours: eight GPUs are one more. */
export const stroke = (place) => ({ stroke: SERIES[place % SERIES.length], strokeDasharray: place >= SERIES.length ? "6 3" : undefined });

/** Which line is which, where there are several; `name` tells what stands beside its sign. */
export const LineKey = ({ lines, name = (line) => line }) =>
  lines.length > 1 &&
  h(
    UI.Flex,
    { gap: 3, wrap: "wrap", fontSize: "xs" },
    lines.map((line, place) => h("span", { key: place }, h("span", { "aria-hidden": true, style: { color: SERIES[place % SERIES.length] } }, place >= SERIES.length ? "╍ " : "━ "), name(line))),
  );
export const SHAPES = ["circle", "square", "triangle", "diamond", "cross", "down", "plus"];

export function Page({ title, aside, children }) {
  return h(
    UI.Box,
    { p: { base: 2, md: 4 }, maxW: "1800px", overflowWrap: "anywhere", "data-testid": "llem-page" },
    h(
      UI.Flex,
      { align: "baseline", gap: 3, wrap: "wrap", mb: 2 },
      h(UI.Heading, { as: "h1", size: "lg" }, title),
      aside,
    ),
    children,
  );
}

export const Section = ({ title, children, ...rest }) =>
  h(UI.Box, { as: "section", mt: 5, ...rest }, title && h(UI.Heading, { as: "h2", size: "md", mb: 2 }, title), children);

export const Muted = ({ children }) => h(UI.Text, { color: "fg.muted", fontSize: "sm" }, children);

/** What is wrong, or missing, and what to do about it. */
export function Notice({ kind = "info", title, children }) {
  const colours = { info: "blue", warning: "orange", error: "red" };
  return h(
    UI.Box,
    {
      role: kind === "error" ? "alert" : "status",
      borderLeftWidth: "4px",
      borderColor: `${colours[kind]}.solid`,
      bg: "bg.subtle",
      p: 3,
      my: 2,
    },
    title && h(UI.Text, { fontWeight: "semibold" }, title),
    children,
  );
}

export const Loading = () => h(UI.Text, { color: "fg.muted", role: "status" }, "Loading …");

const PALETTES = {
  regression: "red",
  improvement: "green",
  unchanged: "gray",
  "not comparable": "purple",
  "not enough evidence": "gray",
  running: "blue",
  queued: "gray",
  success: "green",
  failed: "red",
  estimate: "orange",
};
const SIGNS = { regression: "▲", improvement: "▼", unchanged: "=", "not comparable": "≠", "not enough evidence": "?" };

/** A verdict with its sign. */
export const signed = (text) => (SIGNS[text] ? `${SIGNS[text]} ${text}` : text);

/** A word with a colour; the word says all that the colour says. */
export function Tag({ children, ...rest }) {
  const text = String(children);
  return h(UI.Badge, { colorPalette: PALETTES[text] ?? "gray", variant: "subtle", ...rest }, signed(text));
}

export const Estimate = ({ kind }) => (kind === "estimate" ? h(Tag, { ml: 1 }, "estimate") : null);

/** Foreign text line by line: never anything but text. */
export const Verbatim = ({ children, label }) =>
  h(
    UI.Box,
    {
      as: "pre",
      tabIndex: 0,
      "aria-label": label,
      whiteSpace: "pre-wrap",
      bg: "bg.subtle",
      borderWidth: "1px",
      borderRadius: "sm",
      p: 2,
      fontSize: "xs",
      maxH: "24rem",
      overflow: "auto",
      fontFamily: "mono",
    },
    children,
  );

/** What is known, as names with their values. */
export const Facts = ({ rows }) =>
  h(
    UI.Box,
    { as: "dl", display: "grid", gridTemplateColumns: "minmax(8rem, max-content) 1fr", columnGap: 4, fontSize: "sm" },
    rows.map(([name, value]) => h(Fragment, { key: name }, h(UI.Box, { as: "dt", color: "fg.muted" }, name), h("dd", { style: { minWidth: 0 } }, value))),
  );

/** A few rows that nobody sorts. */
export const PlainTable = ({ label, titles, rows }) =>
  h(
    UI.Box,
    { overflowX: "auto", tabIndex: 0, role: "region", "aria-label": label },
    h(
      UI.Table.Root,
      { size: "sm" },
      h(UI.Table.Header, null, h(UI.Table.Row, null, titles.map((title) => h(UI.Table.ColumnHeader, { key: title }, title)))),
      h(
        UI.Table.Body,
        null,
        rows.map((cells, place) => h(UI.Table.Row, { key: place, verticalAlign: "top" }, cells.map((cell, at) => h(UI.Table.Cell, { key: at }, cell)))),
      ),
    ),
  );

/** An attempt that failed: why, what to do, and its last lines for those who may read the log. */
export const Attempt = ({ failure }) =>
  h(
    Section,
    { title: `Attempt ${failure.attempt} failed: ${failure.category.replaceAll("_", " ")}` },
    h(UI.Text, null, failure.message),
    failure.hint && h(UI.Text, null, h("strong", null, "What to do: "), failure.hint),
    failure.tail === null
      ? h(Muted, null, "Its output is shown to users who may read the logs of this DAG's tasks.")
      : failure.tail.length > 0 && h(Verbatim, { label: `Last lines of attempt ${failure.attempt}` }, failure.tail.join("\n")),
    h(Muted, null, `Evidence: ${failure.url}`),
  );

export const FIELD = {
  color: INK,
  background: PAPER,
  border: `1px solid ${LINE}`,
  borderRadius: "4px",
  padding: "2px 6px",
  fontSize: "0.875rem",
  maxWidth: "100%",
};

export function Choose({ label, value, options, onChange }) {
  return h(
    "label",
    { style: { display: "inline-flex", gap: "0.4rem", alignItems: "center", fontSize: "0.875rem", maxWidth: "100%" } },
    h("span", { style: { color: MUTED } }, label),
    h(
      "select",
      { value, "aria-label": label, onChange: (event) => onChange(event.target.value), style: FIELD },
      options.map(([key, text]) => h("option", { key, value: key }, text)),
    ),
  );
}

/** The address follows what is typed; it never writes into the field meanwhile, as it comes later than the next letter. */
export function Search({ label, value, onChange }) {
  const field = useRef(null);
  useEffect(() => {
    if (document.activeElement !== field.current) field.current.value = value;
  }, [value]);
  return h("input", {
    ref: field,
    type: "search",
    "aria-label": label,
    placeholder: label,
    defaultValue: value,
    onChange: (event) => onChange(event.target.value),
    style: { ...FIELD, minWidth: "10rem" },
  });
}

export function Tabs({ label, value, options, onChange }) {
  const move = (event, place) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = (place + step + options.length) % options.length;
    event.currentTarget.parentElement.children[next].focus();
    onChange(options[next][0]);
  };
  return h(
    UI.Flex,
    { role: "tablist", "aria-label": label, gap: 1, borderBottomWidth: "1px", mb: 3, wrap: "wrap" },
    options.map(([key, text], place) =>
      h(
        "button",
        {
          key,
          type: "button",
          role: "tab",
          "aria-selected": key === value,
          onKeyDown: (event) => move(event, place),
          onClick: () => onChange(key),
          style: {
            padding: "0.35rem 0.8rem",
            borderBottom: `3px solid ${key === value ? SERIES[0] : "transparent"}`,
            fontWeight: key === value ? 600 : 400,
            cursor: "pointer",
          },
        },
        text,
      ),
    ),
  );
}

const ordered = (a, b) => {
  if (a === null || a === undefined) return b === null || b === undefined ? 0 : 1;
  if (b === null || b === undefined) return -1;
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
};

/**
 * A table whose rows can be sorted by any column, filtered by text, and whose columns can be chosen; all in the address.
 * A column: `{key, title, value(row), cell(row), number, hidden}`; `value` is what is sorted and found.
 */
export function DataTable({ name, label, columns, rows, rowKey, tools, pageSize = 100 }) {
  const [sort, setSort] = useAddress(`${name}-sort`);
  const [text, setText] = useAddress(`${name}-find`);
  const initial = columns.filter((each) => !each.hidden).map((each) => each.key).join("~");
  const [chosen, setChosen] = useAddress(`${name}-columns`, initial);
  const [size, setSize] = useState(pageSize);
  const keys = new Set(chosen.split("~"));
  const shown = columns.filter((each) => keys.has(each.key));
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const texts = columns.filter((each) => !each.number); // any digit is somewhere in a row of measured numbers
  const found = rows.filter((row) => {
    const all = texts.map((each) => String(each.value(row) ?? "")).join(" ").toLowerCase();
    return words.every((word) => all.includes(word));
  });
  const down = sort.startsWith("-");
  const by = columns.find((each) => each.key === sort.replace(/^-/, ""));
  if (by) found.sort((a, b) => {
    const known = by.value(a) ?? by.value(b) ?? null;
    if (known === null || by.value(a) == null || by.value(b) == null) return ordered(by.value(a), by.value(b));
    return (down ? -1 : 1) * ordered(by.value(a), by.value(b));
  });
  const toggle = (key) => {
    const next = columns.map((each) => each.key).filter((each) => (each === key ? !keys.has(each) : keys.has(each)));
    if (next.length) setChosen(next.join("~"));
  };
  return h(
    Fragment,
    null,
    h(
      UI.Flex,
      { gap: 3, align: "center", wrap: "wrap", mb: 2 },
      h(Search, { label: "Filter rows", value: text, onChange: setText }),
      h(
        "details",
        { style: { fontSize: "0.875rem" } },
        h("summary", { style: { cursor: "pointer" } }, `Columns (${shown.length} of ${columns.length})`),
        h(
          UI.Flex,
          { gap: 3, wrap: "wrap", py: 1 },
          columns.map((each) =>
            h(
              "label",
              { key: each.key },
              h("input", { type: "checkbox", checked: keys.has(each.key), onChange: () => toggle(each.key) }),
              ` ${each.title}`,
            ),
          ),
        ),
      ),
      tools,
      h(Muted, null, found.length === rows.length ? counted(rows.length, "row") : `${found.length} of ${counted(rows.length, "row")}`),
    ),
    h(
      UI.Box,
      { overflowX: "auto", tabIndex: 0, role: "region", "aria-label": label },
      h(
        UI.Table.Root,
        { size: "sm", interactive: true },
        h(
          UI.Table.Header,
          null,
          h(UI.Table.Row, null, shown.map((each) => h(Title, { key: each.key, each, sort, setSort }))),
        ),
        h(
          UI.Table.Body,
          null,
          found.slice(0, size).map((row) =>
            h(
              UI.Table.Row,
              { key: rowKey(row) },
              shown.map((each) =>
                h(
                  UI.Table.Cell,
                  { key: each.key, textAlign: each.number ? "end" : "start", whiteSpace: each.number ? "nowrap" : "normal" },
                  (each.cell ? each.cell(row) : each.value(row)) ?? ABSENT,
                ),
              ),
            ),
          ),
        ),
      ),
    ),
    found.length > size &&
      h(UI.Button, { size: "xs", variant: "outline", mt: 2, onClick: () => setSize(size + 10 * pageSize) }, "Show more rows"),
  );
}

function Title({ each, sort, setSort }) {
  const up = sort === each.key;
  const down = sort === `-${each.key}`;
  return h(
    UI.Table.ColumnHeader,
    { "aria-sort": up ? "ascending" : down ? "descending" : "none", textAlign: each.number ? "end" : "start", title: each.help },
    h(
      "button",
      {
        type: "button",
        onClick: () => setSort(up ? `-${each.key}` : down ? "" : each.key),
        style: { fontWeight: 600, cursor: "pointer", textAlign: "inherit" },
      },
      `${each.title}${up ? " ↑" : down ? " ↓" : ""}`,
    ),
  );
}
