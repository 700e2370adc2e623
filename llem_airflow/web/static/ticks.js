// Ticks of an axis as `[value, text]`: round values, with as many digits as tell each from its neighbours.

import { number } from "./format.js";

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
