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

/** Shows what went wrong, in the place that `where` names; an older message goes. */
export function complain(where, error) {
  if (error?.name === "AbortError") return;
  const box = $(where);
  box.textContent = error?.message ?? "";
  box.hidden = !error;
}

export const percent = share => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;

/** Runs `work` once nothing has called for it for `ms` milliseconds. */
export function debounced(work, ms) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...given), ms);
  };
}

/** A label that may break where its words are joined. */
export const breakable = label => label.replaceAll(/[_\-/]/g, "$&\u200b");
