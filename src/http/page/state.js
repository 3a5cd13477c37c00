// What the page is about: one picture, the model that looks at it, and the collection that names it.

export const state = {
  /** The chosen File or Blob. */
  picture: null,
  /** Its name, for the requests to copy. */
  name: "photo.jpg",
  /** What was done to it before it is sent, in words; empty where it is the file as it came. */
  done: "",
  /** The model to use; null for the server's own choice. */
  model: null,
  /** The collection that votes, or null where a classifier does or there is none. */
  collection: null,
  /** The classifier that votes. */
  head: null,
  /** Whether the server has a place to keep collections. */
  kept: true,
  /** The items that were added on this page, by collection: label by id. */
  taught: new Map(),
};

/**
 * `picture`: another one was chosen. `model`: another model. `voters`: another collection or classifier was chosen, or
 * something was added. `tab`: another one is shown (detail: its name). `answer`: the vote on the picture (detail: the answer). `request`: an option that requests show.
 */
export const changes = new EventTarget();

export const tell = (name, detail) => changes.dispatchEvent(new CustomEvent(name, { detail }));
export const on = (name, work) => changes.addEventListener(name, event => work(event.detail));

/** A path with its options as a query; those that are null are left out. */
export function path(route, options = {}) {
  const query = Object.entries(options).filter(([, value]) => value !== null && value !== undefined)
    .map(([name, value]) => `${name}=${encodeURIComponent(value).replaceAll("%2C", ",")}`).join("&");
  return query ? `${route}?${query}` : route;
}
