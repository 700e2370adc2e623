// The one component of all pages: Airflow gives it the ids of where it stands, and the address says the rest.

import { h, useLocation } from "./base.js";
import { RunPage } from "./run.js";
import { Card, DagPage, StudiesPage } from "./studies.js";

function Energy({ dagId, runId }) {
  const { pathname } = useLocation();
  if (dagId && runId) return h(RunPage, { key: `${dagId} ${runId}`, dagId, runId });
  if (dagId) return h(DagPage, { key: dagId, dagId });
  return pathname.includes("/plugin/") ? h(StudiesPage) : h(Card);
}

globalThis.AirflowPlugin = Energy;
