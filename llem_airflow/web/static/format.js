// Numbers, times and ticks of axes for people; the rules are those of the reports: three significant digits, a unit that fits.

export const ABSENT = "–";
const SMALL = { s: ["ms", 1e3], "J/token": ["mJ/token", 1e3] };

export function number(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return ABSENT;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-9 || size >= 1e15) return value.toExponential(digits - 1);
  const rounded = Number(value.toPrecision(digits));
  return rounded.toLocaleString("en", { maximumFractionDigits: Math.max(0, digits - 1 - Math.floor(Math.log10(size))) });
}

/** Unit and factor in which values up to `largest` are easy to read. */
export function scaleOf(metric, largest) {
  if (metric.unit === "ratio") return { unit: "%", factor: 100 };
  const small = SMALL[metric.unit];
  const limit = metric.unit === "s" ? 1 : 0.1;
  return small && Math.abs(largest) > 0 && Math.abs(largest) < limit
    ? { unit: small[0], factor: small[1] }
    : { unit: metric.unit, factor: 1 };
}

export const isEstimate = (metric, kind) => Boolean(metric.energy) && kind === "estimate";

/** `~ 12.3 mJ/token`, with the sign of an estimate where it is one. */
export function quantity(metric, value, kind) {
  if (value === null || value === undefined) return ABSENT;
  const { unit, factor } = scaleOf(metric, value);
  return `${isEstimate(metric, kind) ? "~ " : ""}${number(value * factor)} ${unit}`;
}

export function interval(metric, found, scale) {
  if (found.low === null || found.low === undefined) return found.n < 3 ? `no interval (n = ${found.n})` : "no interval";
  const { factor } = scale ?? scaleOf(metric, found.mean);
  return `${number(found.low * factor)} to ${number(found.high * factor)}`;
}

export function change(ratio) {
  if (ratio === null || ratio === undefined) return ABSENT;
  const rounded = Math.round(ratio * 1000) / 10;
  const text = Math.abs(rounded).toLocaleString("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
  return rounded === 0 ? "0.0 %" : `${rounded < 0 ? "−" : "+"}${text} %`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return ABSENT;
  const whole = Math.round(seconds);
  if (whole < 60) return `${seconds < 10 ? number(seconds, 2) : whole} s`;
  const minutes = Math.round(whole / 60);
  if (minutes < 60) return whole < 600 ? `${Math.floor(whole / 60)} min ${whole % 60} s` : `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.round(hours / 24)} days`;
}

/** `12.3 to 14.7 s`, as fine as a thousandth of the stretch. */
export function stretch(begin, end) {
  const digits = Math.min(9, Math.max(0, 3 - Math.ceil(Math.log10(Math.max(end - begin, 1e-9)))));
  const [from, to] = [begin, end].map((at) => (Math.round(at * 10 ** digits) / 10 ** digits || 0).toLocaleString("en", { maximumFractionDigits: digits }));
  return `${from} to ${to} s`;
}

const MINUTES = { dateStyle: "short", timeStyle: "short" };
const formats = new Map();

/** The zone that was chosen in Airflow, which keeps it in the browser; else that of the browser. */
function zone() {
  try {
    return JSON.parse(globalThis.localStorage.getItem("timezone")) ?? undefined;
  } catch {
    return undefined;
  }
}

/** Writes instants in a zone; one that the browser does not know is its own. */
function formatOf(options, timeZone) {
  const key = `${options.timeStyle ?? ""} ${timeZone ?? ""}`;
  try {
    if (!formats.has(key)) formats.set(key, new Intl.DateTimeFormat("sv", { ...options, timeZone }));
    return formats.get(key);
  } catch {
    return formatOf(options, undefined);
  }
}

const written = (epochNs, options) => formatOf(options, zone()).format(new Date(epochNs / 1e6));

/** An instant in the zone of Airflow's UI, to the minute. */
export const when = (epochNs) => (epochNs ? written(epochNs, MINUTES) : ABSENT);
/** Its day. */
export const day = (epochNs) => written(epochNs, { dateStyle: "short" });

/** Two instants, the second without its day where that is the same. */
export function between(epochNs, later) {
  const [one, other] = [when(epochNs), when(later)];
  return one === other ? one : `${one} to ${one.slice(0, 10) === other.slice(0, 10) ? other.slice(11) : other}`;
}

/** A value of a factor on a short line. */
export function short(value) {
  if (value === null || value === undefined) return ABSENT;
  const text = typeof value === "object" ? JSON.stringify(value) : String(value);
  return text.length > 60 ? `${text.slice(0, 57)}…` : text;
}

/** An order in which 16 follows 4. */
export const natural = (a, b) => a.localeCompare(b, "en", { numeric: true });
export const shortKey = (key) => key.split(".").pop();
/** A text as a sentence begins. */
export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);
/** A text as one ends, once. */
export const ended = (text) => `${text.replace(/\.$/, "")}.`;
export const counted = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;
/** `n = 6 on 2 hosts`. */
export const cycles = (n, hosts = 1) => `n = ${n}${hosts > 1 ? ` on ${hosts} hosts` : ""}`;
/** `12 to 14, n = 6`. */
export const spread = (metric, found, scale) => `${found.n < 3 ? "no interval" : interval(metric, found, scale)}, ${cycles(found.n, found.hosts)}`;

// Ticks of an axis as `[value, text]`: round values, with as many digits as tell each from its neighbours.

const DIGITS = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

/** Values with their texts. */
export function told(values) {
  const digits = DIGITS.find((count) => values.every((value) => Number(value.toPrecision(count)) === value)) ?? DIGITS.at(-1);
  return values.map((value) => [value, number(value, digits)]);
}

function multiples(step, low, high) {
  const first = Math.ceil(low / step - 1e-9);
  const count = Math.min(100, Math.max(0, Math.floor(high / step + 1e-9) - first + 1)) || 0;
  return [...new Set(Array.from({ length: count }, (_, place) => Number(((first + place) * step).toPrecision(12))))];
}

/** About so many ticks within a range, and never fewer than two. */
export function niceTicks(low, high, count) {
  const raw = (high - low || Math.abs(high) || 1) / Math.max(2, count);
  const size = 10 ** Math.floor(Math.log10(raw));
  const steps = [1, 2, 5, 10].map((one) => one * size);
  const wide = steps.map((one) => multiples(one, low, high)).find((found) => found.length <= 1.25 * Math.max(2, count)) ?? [];
  return told(wide.length > 1 ? wide : multiples(steps.findLast((one) => one <= raw) ?? steps[0], low, high));
}

/** Powers of ten between two exponents, and their double and fivefold where there are few. */
export function logTicks(from, to) {
  const marks = to - from > 2 ? [1] : [1, 2, 5];
  const found = [];
  for (let power = Math.floor(from); power <= to; power += 1)
    for (const mark of marks) {
      const value = Number(`${mark}e${power}`);
      if (Math.log10(value) >= from && Math.log10(value) <= to) found.push(value);
    }
  return told(found);
}
