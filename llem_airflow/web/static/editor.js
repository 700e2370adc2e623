// A text field with line numbers, marks at lines that have problems, and completion of keys and values.

import { h, UI, useEffect, useRef, useState } from "./base.js";
import { complete } from "./complete.js";
import { INK, LINE, PAPER } from "./parts.js";

const ROW_REM = 1.3;
const TEXT = { fontFamily: "var(--chakra-fonts-mono, monospace)", fontSize: "0.8125rem", lineHeight: `${ROW_REM}rem`, whiteSpace: "pre", tabSize: 2 };
const LAYER = { position: "absolute", inset: 0, overflow: "hidden", padding: "0.5rem", pointerEvents: "none" };

/** Puts text in place of what lies between two places of a field, so that it can be undone. */
function put(field, begin, end, text) {
  field.focus();
  field.setSelectionRange(begin, end);
  if (!document.execCommand("insertText", false, text)) {
    field.setRangeText(text, begin, end, "end");
    field.dispatchEvent(new Event("input", { bubbles: true }));
  }
}

/** Puts the cursor at a line and column, from 1, and shows it. */
export function goTo(field, line, column) {
  const lines = field.value.split("\n");
  const place = lines.slice(0, line - 1).reduce((sum, one) => sum + one.length + 1, 0) + column - 1;
  field.focus();
  field.setSelectionRange(place, place);
  field.scrollTop = Math.max(0, (line - 5) * (field.scrollHeight / lines.length));
}

/**
 * The editor of a study.
 * `problems` and `warnings` are `[{line, column, text}]`; `onChange(text)` gets what is typed, `onFile(file)` what is dropped.
 */
export function Editor({ field, value, schema, problems, warnings, onChange, onFile }) {
  const [scroll, setScroll] = useState({ left: 0, top: 0 });
  const [offer, setOffer] = useState(null);
  const [chosen, setChosen] = useState(0);
  const lines = value.split("\n");
  const marks = new Map();
  for (const one of warnings) if (one.line) marks.set(one.line, { kind: "warning", text: one.text });
  for (const one of [...problems].reverse()) marks.set(one.line, { kind: "error", text: one.text });
  const look = (target, asked) => {
    const { selectionStart: place, selectionEnd: end } = target;
    const found = schema && place === end ? complete(target.value, place, schema) : null;
    // Without a letter every key fits: only who asks gets them all.
    setOffer(found && (asked || place > found.begin) ? { ...found, place } : null);
    setChosen(0);
  };
  const take = (option) => {
    put(field.current, offer.begin, offer.place, option.insert);
    setOffer(null);
  };
  const keys = (event) => {
    const steps = { ArrowDown: 1, ArrowUp: -1 };
    if (event.key === " " && event.ctrlKey) look(event.target, true);
    else if (offer && event.key in steps) setChosen((chosen + steps[event.key] + offer.options.length) % offer.options.length);
    else if (offer && (event.key === "Enter" || event.key === "Tab") && !event.shiftKey) take(offer.options[chosen]);
    else if (offer && event.key === "Escape") setOffer(null);
    else if (event.key === "Enter" && !event.shiftKey) {
      const { selectionStart: begin, selectionEnd: end, value: text } = event.target;
      const line = text.slice(0, begin).split("\n").at(-1);
      put(event.target, begin, end, `\n${line.match(/^ */)[0]}${/^[^#]*:\s*$/.test(line) ? "  " : ""}`);
    } else return;
    event.preventDefault();
  };
  return h(
    UI.Box,
    { position: "relative", borderWidth: "1px", borderRadius: "md", display: "flex", bg: "bg", h: { base: "50vh", md: "60vh" }, minH: "16rem", "data-testid": "llem-editor" },
    h(Gutter, { lines, marks, top: scroll.top }),
    h(
      "div",
      { style: { position: "relative", flex: 1, minWidth: 0 } },
      h(Marks, { lines, marks, scroll }),
      h("textarea", {
        ref: field,
        value,
        wrap: "off",
        spellCheck: false,
        autoCapitalize: "off",
        autoComplete: "off",
        "aria-label": "Study, as YAML",
        "aria-describedby": "llem-problems",
        "aria-invalid": problems.length > 0,
        "aria-autocomplete": "list",
        "aria-controls": offer ? "llem-offer" : undefined,
        "aria-activedescendant": offer ? `llem-offer-${chosen}` : undefined,
        placeholder: "Paste a study here, drop a file, or start from the example.",
        onChange: (event) => {
          onChange(event.target.value);
          look(event.target, false);
        },
        onKeyDown: keys,
        onClick: () => setOffer(null),
        onBlur: () => setOffer(null),
        onScroll: (event) => setScroll({ left: event.target.scrollLeft, top: event.target.scrollTop }),
        onDragOver: (event) => event.preventDefault(),
        onDrop: (event) => {
          if (!event.dataTransfer.files.length) return;
          event.preventDefault();
          onFile(event.dataTransfer.files[0]);
        },
        style: { ...TEXT, ...LAYER, pointerEvents: "auto", overflow: "auto", width: "100%", height: "100%", resize: "none", border: 0, background: "transparent", color: INK },
      }),
      offer && h(Offer, { offer, chosen, text: value, scroll, take }),
    ),
  );
}

function Gutter({ lines, marks, top }) {
  const signs = { error: "✕", warning: "!" };
  return h(
    UI.Box,
    { "aria-hidden": true, bg: "bg.subtle", color: "fg.muted", borderRightWidth: "1px", overflow: "hidden", flexShrink: 0, userSelect: "none" },
    h(
      "div",
      { style: { ...TEXT, padding: "0.5rem", textAlign: "right", transform: `translateY(${-top}px)` } },
      lines.map((_, index) => {
        const kind = marks.get(index + 1)?.kind;
        return h(UI.Box, { key: index, color: kind && (kind === "error" ? "red.fg" : "orange.fg"), fontWeight: kind && "bold" }, `${signs[kind] ?? ""} ${index + 1}`);
      }),
    ),
  );
}

/** What is wrong stands behind its line; the list of problems says it to those who do not see it. */
function Marks({ lines, marks, scroll }) {
  return h(
    "div",
    { "aria-hidden": true, style: { ...TEXT, ...LAYER } },
    h(
      "div",
      { style: { transform: `translate(${-scroll.left}px, ${-scroll.top}px)` } },
      lines.map((line, index) => {
        const mark = marks.get(index + 1);
        if (!mark) return h("div", { key: index }, " ");
        const colour = mark.kind === "error" ? "red" : "orange";
        return h(
          UI.Box,
          { key: index, bg: `${colour}.subtle`, "data-testid": "llem-mark", w: "max-content", minW: "100%" },
          h("span", { style: { visibility: "hidden" } }, line),
          h(UI.Box, { as: "span", color: `${colour}.fg`, pl: "2ch" }, mark.text.slice(0, 200)),
        );
      }),
    ),
  );
}

function Offer({ offer, chosen, text, scroll, take }) {
  const before = text.slice(0, offer.begin).split("\n");
  const list = useRef(null);
  useEffect(() => {
    list.current?.children[chosen]?.scrollIntoView({ block: "nearest" });
  }, [chosen]);
  return h(
    "ul",
    {
      ref: list,
      id: "llem-offer",
      role: "listbox",
      "aria-label": "Completions",
      style: {
        ...TEXT,
        position: "absolute",
        zIndex: 2,
        top: `calc(${before.length * ROW_REM + 0.5}rem - ${scroll.top}px)`,
        left: `min(calc(${before.at(-1).length}ch + 0.5rem - ${scroll.left}px), max(0px, 100% - 22rem))`,
        maxHeight: "12rem",
        maxWidth: "100%",
        overflowY: "auto",
        background: PAPER,
        border: `1px solid ${LINE}`,
        borderRadius: "4px",
        listStyle: "none",
      },
    },
    offer.options.map((one, index) =>
      h(
        UI.Box,
        {
          as: "li",
          key: one.text,
          id: `llem-offer-${index}`,
          role: "option",
          "aria-selected": index === chosen,
          bg: index === chosen ? "blue.subtle" : undefined,
          px: 2,
          cursor: "pointer",
          onMouseDown: (event) => {
            event.preventDefault(); // the field keeps the cursor
            take(one);
          },
        },
        one.text,
        one.help && h(UI.Box, { as: "span", color: "fg.muted", pl: 3 }, one.help.length > 60 ? `${one.help.slice(0, 59)}…` : one.help),
      ),
    ),
  );
}
