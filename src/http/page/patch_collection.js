// A collection of patches for as long as the page is open. It is a copy of pictures that the page holds, so that it can be made anew
// at any time: when it was deleted, after a way back to the page, or for another model.

import { ask, json, post } from "./api.js";
import { path, state } from "./state.js";

/** What the names of these collections begin with. */
const PREFIX = "page-odd-one-out-";
/** Those that are older, in seconds, were left behind by a browser that ended unseen; a page that still uses one makes it anew. */
const LEFT_BEHIND = 3600;
/** Codes of errors that are about one picture alone. */
const OF_ONE_PICTURE = ["unknown_format", "corrupt_picture", "empty_picture", "too_many_pixels", "body_too_large"];

const routeOf = name => `/collections/${encodeURIComponent(name)}`;

async function remove(name, options = {}) {
  try {
    await ask(routeOf(name), { method: "DELETE", ...options });
  } catch (error) {
    if (error.code !== "unknown_collection") throw error;
  }
}

/** Deletes what pages left behind. `now` is the server's time in seconds. */
async function cleanUp(now) {
  const { collections } = await json("/collections");
  const isLeft = ({ name, kind, created }) => name.startsWith(PREFIX) && kind === "patches" && created < now - LEFT_BEHIND;
  for (const { name } of collections.filter(isLeft)) await remove(name);
}

export class PatchCollection {
  /** Its name on the server; null where there is none. */
  name = null;
  /** The ids of its items. */
  #held = new Set();

  /**
   * Runs `work` with the collection's route while it holds just these pictures, `{ id, picture }`. `tell` hears of each that is sent: its
   * number, and of how many. Nothing more is done once `isOld` says that it is not wanted any more. Where the server does not read one of
   * the pictures, the error has it as `good`.
   */
  async with(pictures, tell, isOld, work) {
    try {
      return await this.#with(pictures, tell, isOld, work);
    } catch (error) {
      if (error.code !== "unknown_collection" || isOld()) throw error;
      // It was deleted by another tab, or on the server.
      this.name = null;
      return this.#with(pictures, tell, isOld, work);
    }
  }

  async #with(pictures, tell, isOld, work) {
    if (!this.name) await this.#make();
    await this.#hold(pictures, tell, isOld);
    return isOld() ? null : work(routeOf(this.name));
  }

  async #hold(pictures, tell, isOld) {
    const route = routeOf(this.name);
    const wanted = new Set(pictures.map(({ id }) => id));
    for (const id of [...this.#held].filter(id => !wanted.has(id))) {
      await ask(`${route}/items/${encodeURIComponent(id)}`, { method: "DELETE" });
      this.#held.delete(id);
    }
    const missing = pictures.filter(({ id }) => !this.#held.has(id));
    for (const [at, good] of missing.entries()) {
      if (isOld()) return;
      tell(at + 1, missing.length);
      try {
        await post(path(`${route}/items`, { id: good.id, labels: "normal" }), good.picture);
      } catch (error) {
        throw OF_ONE_PICTURE.includes(error.code) ? Object.assign(error, { good }) : error;
      }
      this.#held.add(good.id);
    }
  }

  async #make() {
    const name = PREFIX + crypto.getRandomValues(new Uint32Array(1))[0].toString(36);
    const body = JSON.stringify({ kind: "patches", ...state.model ? { model: state.model } : {} });
    const { created } = await json(routeOf(name), { method: "PUT", body, headers: { "Content-Type": "application/json" } });
    this.name = name;
    this.#held.clear();
    // No comparison waits for it or fails with it.
    cleanUp(created).catch(() => {});
  }

  /** Deletes it. */
  async end() {
    const { name } = this;
    this.name = null;
    if (name) await remove(name);
  }

  /** Deletes it while the page is left. */
  leave() {
    const { name } = this;
    this.name = null;
    if (name) remove(name, { keepalive: true }).catch(() => {});
  }
}
