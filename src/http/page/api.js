// Requests to this server, with its key where it asks for one, and its errors in words.

import { $ } from "./dom.js";

const KEPT = "dino-key";
/** Statuses after which the same request may be answered: busy, not ready, too slow, or a proxy before a server that restarts. */
const PASSING = [429, 502, 503, 504];
let waitingForKey = null;

/** The key of this tab; forgotten when the tab is closed. */
export const key = () => sessionStorage.getItem(KEPT) ?? "";

/** Where a route lies: below the page, which a proxy may show under a path that it cuts off. */
export const address = route => new URL(`.${route}`, document.baseURI).href;

/** Sends a request; answers the response, or throws an Error whose message people can read. */
export async function ask(path, options = {}) {
  for (;;) {
    const sent = key();
    const headers = sent ? { ...options.headers, Authorization: `Bearer ${sent}` } : options.headers;
    let response;
    try {
      response = await fetch(address(path), { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw Object.assign(new Error("The server cannot be reached. Is it still running?"), { mayPass: true });
    }
    if (response.ok) return response;
    const problem = await response.json().catch(() => ({}));
    // A key may have been entered while this request was under way.
    if (response.status === 401 && (sent !== key() || await askForKey(problem))) continue;
    const error = new Error(problem.detail ?? `The server answered ${response.status} ${response.statusText}.`);
    throw Object.assign(error, { code: problem.code, mayPass: PASSING.includes(response.status) });
  }
}

export const json = async (path, options) => (await ask(path, options)).json();

/** Sends a picture as the body. */
export const post = (path, picture, signal) => json(path, {
  method: "POST", body: picture, signal, headers: { "Content-Type": "application/octet-stream" },
});

/** Asks for a key, once for all requests that wait for it; true where one was entered. */
export function askForKey(problem) {
  waitingForKey ??= new Promise(resolve => {
    const dialog = $("key-dialog");
    $("key-why").textContent = problem?.code === "key_unknown" ? "The server does not know this key. Try another one."
      : problem ? "This server asks for a key. Whoever runs it can give you one." : "It is sent with each request of this tab, and forgotten with it.";
    dialog.returnValue = "";
    dialog.onclose = () => {
      const entered = dialog.returnValue === "use" ? $("key").value.trim() : "";
      if (entered) sessionStorage.setItem(KEPT, entered);
      $("key").value = "";
      waitingForKey = null;
      resolve(Boolean(entered));
    };
    dialog.showModal();
  });
  return waitingForKey;
}

/** Newest request of a kind: one that is asked for again takes the place of the one under way. */
export class Latest {
  #controller = null;

  /** The signal for a new request; the earlier one is aborted. */
  next() {
    this.#controller?.abort();
    this.#controller = new AbortController();
    return this.#controller.signal;
  }
}
