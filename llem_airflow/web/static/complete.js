// What may be written where the cursor stands in a study: keys of its section, or values of its key, by the JSON Schema.

const KEY = /^( *)(- +)?(?:("[^"]*"|'[^']*'|[^\s#:'"][^#:]*?) *:(?= |$)(.*))?/;
const MOST = 40;

/** Indentation of the key of a line, its name, whether it begins an item of a list, and what follows the colon. */
function parts(line) {
  const [, spaces, dash = "", name, rest = ""] = line.match(KEY);
  return { begin: spaces.length, indent: spaces.length + dash.length, item: dash !== "" || /^ *-$/.test(line), name: name?.replace(/^["']|["']$/g, ""), rest: rest.trim() };
}

/** Keys and `[]` (an item of a list) from the top of the text down to a line that is indented so far. */
export function pathAt(lines, indent, item) {
  const path = [];
  let inside = indent;
  const leave = (begin) => {
    path.unshift("[]");
    inside = begin + 1; // the list may stand right below its key, not indented
  };
  let begin = item;
  if (begin !== null) leave(begin);
  for (const line of [...lines].reverse()) {
    if (inside <= 0) break;
    if (!line.trim() || line.trim().startsWith("#")) continue;
    const found = parts(line);
    if (found.name !== undefined && found.indent < inside && !(path[0] === "[]" && found.item && found.begin >= inside - 1)) {
      if (found.rest === "" || found.rest.startsWith("#")) path.unshift(found.name);
      else return null; // below a key that has its value already
      inside = found.indent;
      if (found.item) leave(found.begin);
    } else if (found.item && path[0] !== "[]" && found.begin < inside && found.indent === inside) {
      leave(found.begin);
    }
  }
  return path;
}

const branches = (schema) => (schema ? [schema, ...(schema.anyOf ?? []).flatMap(branches)] : []);

/** The schemas of what a path leads to. */
function below(schema, path) {
  let found = branches(schema);
  for (const part of path) {
    const next = found.map((one) => (part === "[]" ? one.items : (one.properties?.[part] ?? (typeof one.additionalProperties === "object" ? one.additionalProperties : null))));
    found = next.filter(Boolean).flatMap(branches);
  }
  return found;
}

function valuesOf(schemas) {
  const values = schemas.flatMap((one) => [...(one.enum ?? []), ...([one.type].flat().includes("boolean") ? [true, false] : []), ...("default" in one && typeof one.default !== "object" ? [one.default] : [])]);
  return [...new Set(values.filter((one) => one !== null).map(String))];
}

/**
 * What completes a text at a place: `{begin, options: [{text, insert, help}]}`, where `begin` is the place from which on the
 * text is replaced; null where nothing is known.
 */
export function complete(text, place, schema) {
  const lines = text.slice(0, place).split("\n");
  const line = lines.pop();
  if (/(^|\s)#/.test(line) || /^[^ ]/.test(text.slice(place).split("\n")[0])) return null;
  const { begin, indent, item, name } = parts(line);
  const value = line.match(/^ *(?:- +)?[^#]*?: +(?:\[(?:[^\]]*, *)?)?([^\s,[\]]*)$/);
  const offer = (typed, options) => {
    const word = typed.toLowerCase();
    const fitting = options.filter((one) => one.text.toLowerCase().includes(word) && one.text !== typed);
    fitting.sort((a, b) => b.text.toLowerCase().startsWith(word) - a.text.toLowerCase().startsWith(word));
    return fitting.length ? { begin: place - typed.length, options: fitting.slice(0, MOST) } : null;
  };
  if (name !== undefined) {
    if (!value) return null;
    const path = pathAt(lines, indent, item ? begin : null);
    if (path === null) return null;
    const found = below(schema, [...path, name]);
    const listed = line.slice(0, line.length - value[1].length).includes("[") ? below({ anyOf: found }, ["[]"]) : found;
    return offer(value[1], valuesOf(listed).map((one) => ({ text: one, insert: one, help: "" })));
  }
  const typed = line.slice(indent);
  if (!/^[\w.-]*$/.test(typed)) return null;
  const path = pathAt(lines, indent, item ? begin : null);
  if (path === null) return null;
  const sections = below(schema, path);
  const keys = sections.flatMap((one) => Object.entries(one.properties ?? {}));
  const options = keys.map(([key, one]) => {
    const opens = branches(one).some((each) => each.properties || (each.items && branches(each.items).some((inner) => inner.properties)));
    return { text: key, insert: `${key}:${opens ? "" : " "}`, help: one.description ?? "" };
  });
  return offer(typed, item ? [...options, ...valuesOf(sections).map((one) => ({ text: one, insert: one, help: "" }))] : options);
}
