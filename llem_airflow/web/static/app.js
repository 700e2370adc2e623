// The one component of all pages: Airflow gives it the ids of where it stands, and the address says the rest.

import { h, useLocation } from "./base.js";
import { TaskPage } from "./cycle.js";
import { RunPage } from "./run.js";
import { Card, DagPage, StudiesPage } from "./studies.js";

function Energy({ dagId, runId, taskId }) {
  const { pathname } = useLocation();
  if (dagId && runId && taskId) return h(TaskPage, { key: `${dagId} ${runId} ${taskId}`, dagId, runId, taskId });
  if (dagId && runId) return h(RunPage, { key: `${dagId} ${runId}`, dagId, runId });
  if (dagId) return h(DagPage, { key: dagId, dagId });
  return pathname.includes("/plugin/") ? h(StudiesPage) : h(Card);
}

globalThis.AirflowPlugin = Energy;
