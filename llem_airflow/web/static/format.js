// Numbers and times for people; the rules are those of the reports: three significant digits, a unit that fits.

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

const WHEN = new Intl.DateTimeFormat("sv", { dateStyle: "short", timeStyle: "short" });

/** An instant in the zone of the user's browser, to the minute. */
export const when = (epochNs) => (epochNs ? WHEN.format(new Date(epochNs / 1e6)) : ABSENT);

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

export const shortKey = (key) => key.split(".").pop();
/** A text as a sentence begins. */
export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);
export const counted = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;
/** `n = 6 on 2 hosts`. */
export const cycles = (n, hosts = 1) => `n = ${n}${hosts > 1 ? ` on ${hosts} hosts` : ""}`;
/** `12 to 14, n = 6`. */
export const spread = (metric, found, scale) => `${found.n < 3 ? "no interval" : interval(metric, found, scale)}, ${cycles(found.n, found.hosts)}`;
