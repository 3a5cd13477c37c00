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
  /** The name of the one in use; null where there is none. */
  #current = null;
  /** The model that the one in use was made for. */
  #model = null;
  /** The names that may be on the server: each from before the request that makes it until it is deleted. */
  #names = new Set();
  /** The ids of the items of the one in use. */
  #held = new Set();

  /** The names of the collections that the server may hold: more than one where deleting failed. */
  get names() {
    return [...this.#names];
  }

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
      this.#names.delete(this.#current);
      this.#current = null;
      return this.#with(pictures, tell, isOld, work);
    }
  }

  async #with(pictures, tell, isOld, work) {
    const isUsable = this.#current && this.#model === state.model;
    const route = routeOf(isUsable ? this.#current : await this.#make());
    await this.#hold(route, pictures, tell, isOld);
    return isOld() ? null : work(route);
  }

  async #hold(route, pictures, tell, isOld) {
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

  /** Makes a new one; answers its name. */
  async #make() {
    const name = PREFIX + crypto.getRandomValues(new Uint32Array(1))[0].toString(36);
    const { model } = state;
    const body = JSON.stringify({ kind: "patches", ...model ? { model } : {} });
    // Before the answer: the page may be left until then.
    this.#names.add(name);
    let created;
    try {
      ({ created } = await json(routeOf(name), { method: "PUT", body, headers: { "Content-Type": "application/json" } }));
    } catch (error) {
      // After a lost connection or a timeout the server may hold it all the same.
      if (!error.mayPass) this.#names.delete(name);
      throw error;
    }
    // Anew: `end` may have run before the server had made it.
    this.#names.add(name);
    this.#current = name;
    this.#model = model;
    this.#held.clear();
    // No comparison waits for it or fails with it.
    cleanUp(created).catch(() => {});
    return name;
  }

  /** Deletes it. Where that fails the name is kept, and the next call tries again. */
  async end() {
    this.#current = null;
    for (const name of this.names) await this.#delete(name);
  }

  /** Deletes it while the page is left. */
  async leave() {
    this.#current = null;
    await Promise.allSettled(this.names.map(name => this.#delete(name, { keepalive: true })));
  }

  async #delete(name, options) {
    await remove(name, options);
    this.#names.delete(name);
  }
}
