// Small helpers for the page's elements.

export const $ = id => document.getElementById(id);

/** A new element; properties are set, children (elements or text) are put in. */
export function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

/** Tells people who do not see the page what has changed on it. */
export function say(text) {
  $("said").textContent = text;
}

/** The errors that are to be seen, by their place. */
const errors = new Map();

/**
 * Shows what went wrong in the place that `where` names; an older message there goes. `again` is offered as a button for errors that
 * may pass. What goes wrong for several parts of a tab in the same way is said once, in the topmost of their places.
 */
export function complain(where, error, again) {
  if (error?.name === "AbortError") return;
  if (error) errors.set(where, { error, again });
  else errors.delete(where);
  const said = new Map([...document.querySelectorAll("[role=tabpanel]"), null].map(tab => [tab, new Set()]));
  for (const box of document.querySelectorAll(".error[id]")) {
    const { error: shown, again: retry } = errors.get(box.id) ?? {};
    const words = said.get(box.closest("[role=tabpanel]"));
    const isShown = Boolean(shown) && !words.has(shown.message);
    if (isShown) words.add(shown.message);
    if (box.hidden === isShown || isShown && box.firstChild?.data !== shown.message) {
      box.hidden = !isShown;
      box.replaceChildren(...isShown ? [shown.message, ...shown.mayPass && retry ? [" ", retryButton(retry)] : []] : []);
    }
  }
}

function retryButton(retry) {
  const button = element("button", { type: "button", className: "quiet", textContent: "Try again" });
  button.onclick = retry;
  return button;
}

export const percent = share => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;

/** A number with its noun: "1 picture", "5,494 pictures". */
export const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

/** Runs `work` once nothing has called for it for `ms` milliseconds. */
export function debounced(work, ms) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...given), ms);
  };
}

/** A label as people read it: it may break where its words are joined, and underscores are blanks. */
export const readable = label => label.replaceAll("_", " ").replaceAll(/[-/]/g, "$&\u200b");
