// The one module that Airflow imports. Airflow shows its own "not found" for as long as the page is open when that
// fails once, and its whole page is gone when a component of ours throws. So this module imports nothing: it loads the
// pages, again after a failure, and stands around them.

const { Component, createElement: h, useEffect, useState } = globalThis.React;

const RELEASE = "@release@";
const MODULES = "@modules@".split(" ");
const LONGEST_WAIT_MS = 30_000;
const LONGEST_PAUSE_MS = 15_000;

let tries = 0;
let loaded = null;

/** The pages; a failed try leaves nothing behind, as a browser may remember an address that failed. */
async function pages() {
  tries += 1;
  // All at once: each module names the next ones only when it is there.
  for (const name of MODULES) document.head.append(Object.assign(document.createElement("link"), { rel: "modulepreload", href: new URL(`./${RELEASE}-${tries}/${name}`, import.meta.url).href }));
  const late = new Promise((_, fail) => setTimeout(() => fail(new Error("the server did not answer")), LONGEST_WAIT_MS));
  const found = await Promise.race([import(`./${RELEASE}-${tries}/pages.js`), late]);
  loaded = found.Energy;
  return loaded;
}

const Told = ({ title, text, act, name }) =>
  h(
    "div",
    { "data-testid": "llem-page", role: "alert", style: { padding: "1rem" } },
    h("p", { style: { fontWeight: 600 } }, title),
    h("p", { style: { whiteSpace: "pre-wrap" } }, text),
    h("button", { type: "button", onClick: act, style: { textDecoration: "underline", cursor: "pointer", marginTop: "0.5rem" } }, name),
  );

/** What is shown instead of a page that throws, so that the rest of Airflow stays. */
class Around extends Component {
  constructor(props) {
    super(props);
    this.state = { error: null };
  }

  static getDerivedStateFromError(error) {
    return { error };
  }

  componentDidUpdate(before) {
    if (this.state.error && before.where !== this.props.where) this.setState({ error: null });
  }

  render() {
    const { error } = this.state;
    if (!error) return this.props.children;
    const act = () => this.setState({ error: null });
    return h(Told, { title: "This page cannot be shown", text: String(error?.message ?? error), act, name: "Show it again" });
  }
}

function Energy(props) {
  const [state, setState] = useState({ shown: loaded, error: null, failed: 0 });
  useEffect(() => {
    if (state.shown) return undefined;
    let gone = false;
    const pause = state.failed ? Math.min(LONGEST_PAUSE_MS, 500 * 2 ** state.failed) : 0;
    const look = async () => {
      try {
        const shown = loaded ?? (await pages());
        if (!gone) setState({ shown, error: null, failed: 0 });
      } catch (error) {
        if (!gone) setState((old) => ({ ...old, error, failed: old.failed + 1 }));
      }
    };
    const timer = setTimeout(look, pause);
    return () => {
      gone = true;
      clearTimeout(timer);
    };
  }, [state.shown, state.failed]);
  if (state.shown) return h(Around, { where: globalThis.location.href }, h(state.shown, props));
  if (!state.error) return globalThis.location.pathname.includes("/plugin/") ? h("p", { role: "status", style: { padding: "1rem" } }, "Loading …") : null;
  const act = () => setState({ shown: loaded, error: null, failed: 0 });
  return h(Told, { title: "The pages of Energy could not be loaded; they are asked for again", text: String(state.error?.message ?? state.error), act, name: "Ask now" });
}

globalThis.AirflowPlugin = Energy;
// By the name in plugin.py, too: of two places that load at the same moment, Airflow takes the component from one alone.
globalThis.Energy = Energy;
