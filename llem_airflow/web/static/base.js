// What every page is made of: Airflow's own React, Router and Chakra, the JSON API, and the state in the address.

export const { createElement: h, Fragment, useEffect, useMemo, useRef, useState } = globalThis.React;
export const { Link, useLocation, useSearchParams } = globalThis.ReactRouterDOM;
export const UI = globalThis.ChakraUI;

const OURS = new URL("../../", import.meta.url); // modules lie below /llem/static/<release>/
const AIRFLOW = new URL("../api/v2/", OURS);

/** Where something of ours is: a path below /llem with its parameters. */
export function ours(path, params) {
  const url = new URL(path, OURS);
  url.search = new URLSearchParams(params);
  return url.href;
}

/** Where something of Airflow's public API is. */
export const airflow = (path) => new URL(path, AIRFLOW).href;

const SIGNED_OUT = "You are not signed in any more. Load the page again to sign in.";
const UNREADABLE = "You have no permission to read this DAG. Whoever looks after this Airflow can give it.";

/** The JSON of an answer; what went wrong as an error, in the words of `known` by status, else in the server's. */
async function read(answer, known) {
  if (answer.ok) return answer.json();
  const body = await answer.json().catch(() => ({}));
  const said = typeof body.detail === "string" ? body.detail : body.detail ? JSON.stringify(body.detail) : "";
  throw new Error({ 401: SIGNED_OUT, ...known }[answer.status] ?? (said || `The server answered with ${answer.status}. Load the page again.`));
}

/** So long an answer may take; a request that hangs would leave a page empty, and asking again costs a server little. */
const LONGEST_WAIT_MS = 60_000;

async function ask(url, signal) {
  const late = new AbortController();
  const abort = () => late.abort();
  signal.addEventListener("abort", abort);
  const timer = setTimeout(abort, LONGEST_WAIT_MS);
  try {
    return await read(await fetch(url, { credentials: "same-origin", headers: { Accept: "application/json" }, signal: late.signal }), { 403: UNREADABLE });
  } catch (error) {
    throw late.signal.aborted && !signal.aborted ? new Error(`The server did not answer within ${LONGEST_WAIT_MS / 1000} s. It is asked again.`) : error;
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", abort);
  }
}

/** Sends a text with the rights of the user: the session's cookie goes only to this Airflow. */
export async function send(url, body, { type = "application/json", signal, known = {} } = {}) {
  const headers = { Accept: "application/json", "Content-Type": type };
  return read(await fetch(url, { method: "POST", credentials: "same-origin", headers, body, signal }), known);
}

/**
 * What the API says at a path, asked again every `again(data)` milliseconds while that is not null and the page is seen.
 * A failed repetition keeps what was there before.
 */
export function useApi(path, params, again = () => null) {
  const key = path === null ? null : ours(`api/${path}`, params);
  const [state, setState] = useState({ key: null, data: null, error: null });
  useEffect(() => {
    if (key === null) return undefined;
    const stop = new AbortController();
    let [timer, busy] = [null, false];
    const look = async () => {
      timer = null;
      busy = true;
      let data = null;
      try {
        data = await ask(key, stop.signal);
        setState({ key, data, error: null });
      } catch (error) {
        if (stop.signal.aborted) return;
        setState((old) => ({ key, data: old.key === key ? old.data : null, error: error.message }));
      }
      busy = false;
      const pause = data === null ? 15000 : again(data);
      if (pause !== null && !stop.signal.aborted) timer = setTimeout(() => (document.hidden ? (timer = null) : look()), pause);
    };
    const seen = () => {
      if (!document.hidden && timer === null && !busy) look();
    };
    look();
    document.addEventListener("visibilitychange", seen);
    return () => {
      stop.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", seen);
    };
  }, [key]);
  return state.key === key ? state : { data: null, error: null };
}

const part = encodeURIComponent;

/** The page of a run, a task, or the log of one try, in Airflow. */
const runPage = (dagId, runId) => `/dags/${part(dagId)}/runs/${part(runId)}`;
export const energyPage = (dagId, runId) => `${runPage(dagId, runId)}/plugin/llem-energy`;
export function taskPage(dagId, runId, task) {
  const mapped = task.map_index >= 0 ? `/mapped/${task.map_index}` : "";
  return `${runPage(dagId, runId)}/tasks/${part(task.task_id)}${mapped}`;
}

/** The last lines of a task's log, by Airflow's own API with the rights of the user; they hold phase, progress, waits. */
export async function logTail(dagId, runId, task, signal) {
  const path = `dags/${part(dagId)}/dagRuns/${part(runId)}/taskInstances/${part(task.task_id)}/logs/${task.try_number}`;
  const url = new URL(path, AIRFLOW);
  url.search = new URLSearchParams({ map_index: task.map_index, full_content: "true" });
  const found = await ask(url, signal);
  return [found.content].flat().map((one) => (typeof one === "string" ? one : String(one?.event ?? "")));
}

/** What the address will be when the router has followed the last change: it does so later than the next one may come. */
let coming = null;

/** Changes values in the address: `change({name: value})`; null takes a name out. */
export function useChange() {
  const [, setSearch] = useSearchParams();
  return (changes) => {
    const { pathname, search } = globalThis.location;
    const next = new URLSearchParams(coming?.pathname === pathname ? coming.search : search);
    for (const [name, value] of Object.entries(changes)) {
      if (value === null) next.delete(name);
      else next.set(name, value);
    }
    const mine = { pathname, search: next.toString() };
    coming = mine;
    setTimeout(() => {
      if (coming === mine) coming = null;
    }, 500);
    setSearch(next, { replace: true });
  };
}

/** A value in the address: `[value, set]`; the default leaves no trace. */
export function useAddress(name, initial = "") {
  const [search] = useSearchParams();
  const change = useChange();
  return [search.get(name) ?? initial, (value) => change({ [name]: value === initial ? null : value })];
}
