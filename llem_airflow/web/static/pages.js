// The one component of all pages; app.js loads it, and Airflow gives it the ids of where it stands, and the address says the rest.

import { h, useEffect, useLocation, useSearchParams, useState } from "./base.js";
import { LeaderboardPage } from "./board.js";
import { DagTaskPage, TaskPage } from "./cycle.js";
import { NewStudyPage } from "./new_study.js";
import { RunPage } from "./run.js";
import { Card, DagPage, StudiesPage } from "./studies.js";

/** Pages of the menu's entry beside the overview, by `page` in the address. */
const OF_NAV = new Map([
  ["new", NewStudyPage],
  ["leaderboard", LeaderboardPage],
]);

/** Shows a page again when another zone is chosen in Airflow's menu, in this tab or in another one. */
function useZone() {
  const [, again] = useState(0);
  useEffect(() => {
    const changed = (event) => event.key === "timezone" && again((count) => count + 1);
    const events = ["local-storage", "storage"];
    events.forEach((name) => globalThis.addEventListener(name, changed));
    return () => events.forEach((name) => globalThis.removeEventListener(name, changed));
  }, []);
}

export function Energy({ dagId, runId, taskId, mapIndex }) {
  const { pathname } = useLocation();
  const [search] = useSearchParams();
  useZone();
  if (dagId && runId && taskId) return h(TaskPage, { key: `${dagId} ${runId} ${taskId} ${mapIndex}`, dagId, runId, taskId, mapIndex });
  if (dagId && runId) return h(RunPage, { key: `${dagId} ${runId}`, dagId, runId });
  const [, group] = pathname.match(/\/tasks\/group\/([^/]+)/) ?? []; // Airflow names no group to a page
  if (dagId && (taskId || group)) return h(DagTaskPage, { key: `${dagId} ${taskId} ${group}`, dagId, taskId, group });
  if (dagId) return h(DagPage, { key: dagId, dagId });
  return pathname.includes("/plugin/") ? h(OF_NAV.get(search.get("page")) ?? StudiesPage) : h(Card);
}
