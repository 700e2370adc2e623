// Power of a cycle while it is measured: the mean of each stretch as a line, from its least to its largest as a band.

import { h, UI, useApi } from "./base.js";
import { duration, niceTicks, number } from "./format.js";
import { LineKey, Muted, stroke, Tag } from "./parts.js";
import { DIM, Levels, phaseBands, Picture, scaleFor, TEXT, useWidth } from "./plots.js";

const POLL_MS = 2000;
const NOT_YET_MS = 5000;
const STALE_S = 30;
const LEFT = 62;

/** The moving plot of a cycle at work; nothing for one that tells nothing. */
export function Live({ asked, height = 190 }) {
  const { data } = useApi("live", asked, (told) => (told.live ? POLL_MS : NOT_YET_MS));
  const live = data?.live;
  if (!live) return null;
  const silent = (data.now_epoch_ns - live.written_epoch_ns) / 1e9;
  const phase = live.phases.at(-1);
  const total = live.gpus.reduce((sum, gpu) => sum + gpu.now_w, 0);
  return h(
    UI.Box,
    { "data-testid": "llem-live", "data-last": live.last_s },
    h(
      UI.Flex,
      { gap: 2, wrap: "wrap", align: "baseline", fontSize: "sm" },
      h(Tag, null, "preliminary"),
      live.energy_kind === "estimate" && h(Tag, null, "estimate"),
      phase && phase.end_s === null && h(Tag, { colorPalette: "blue" }, phase.name.replaceAll("_", " ")),
      live.gpus.length > 0 && h("span", null, `${number(total)} W now${live.gpus.length > 1 ? `, ${live.gpus.length} devices` : ""}, after ${duration(live.last_s)}`),
      silent > STALE_S && h(Muted, null, `Nothing new for ${duration(silent)}: the worker was killed or cannot write, or the attempt tells nothing.`),
    ),
    live.gpus.some((gpu) => gpu.t_s.length > 1) && h(Moving, { live, height }),
    h(LineKey, { lines: live.gpus, name: (gpu) => `${gpu.gpu}: ${number(gpu.now_w)} W` }),
  );
}

function Moving({ live, height }) {
  const [ref, width] = useWidth(600);
  const [right, top, bottom] = [width - 10, 20, height - 22];
  const known = live.gpus.filter((gpu) => gpu.t_s.length > 1);
  const y = scaleFor(known.flatMap((gpu) => gpu.high_w), bottom, top, { zero: true });
  const at = (s) => LEFT + (s / (live.last_s || 1)) * (right - LEFT);
  const line = (gpu, values) => gpu.t_s.map((s, place) => `${at(s).toFixed(1)},${y.at(values[place]).toFixed(1)}`);
  return h(
    Picture,
    { watch: ref, name: "Power so far", groups: known.map((gpu) => gpu.gpu) },
    h(
      "svg",
      { width, height, role: "img", "aria-label": `Power so far: ${known.map((gpu) => `${gpu.gpu} ${number(gpu.now_w)} W now`).join(", ")}`, style: { display: "block" } },
      phaseBands(live.phases.map((phase) => ({ ...phase, end_s: phase.end_s ?? live.last_s })), { at, left: LEFT, right, top, bottom, named: true }),
      h(Levels, { y, left: LEFT, right }),
      niceTicks(0, live.last_s, Math.floor((right - LEFT) / 90)).map(([value, text]) => h("text", { key: value, x: at(value), y: height - 6, textAnchor: "middle", ...DIM }, `${text} s`)),
      h("text", { x: LEFT, y: 13, ...TEXT }, "Power so far, W: mean, least and largest"),
      known.map((gpu) => {
        const own = stroke(live.gpus.indexOf(gpu));
        const band = [...line(gpu, gpu.high_w), ...line(gpu, gpu.low_w).reverse()].join(" ");
        return h(
          "g",
          { key: gpu.gpu },
          h("polygon", { points: band, fill: own.stroke, fillOpacity: 0.2 }),
          h("polyline", { points: line(gpu, gpu.mean_w).join(" "), fill: "none", ...own, strokeWidth: 1.5 }),
        );
      }),
    ),
  );
}
