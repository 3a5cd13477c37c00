// What the picture is: the vote of its neighbours, or of a classifier; and teaching it a new one.

import { $, complain, counted, element, percent, readable, say } from "./dom.js";
import { ask, json, Latest, post } from "./api.js";
import { chooseItem } from "./picture.js";
import { on, path, state, tell } from "./state.js";
import { named, thumbnail } from "./thumbnail.js";

const NEW = "new:";
/** Below this share of the vote the best class is a guess. */
const UNSURE = 0.35;
/** From this similarity on, a neighbour is the picture itself, apart from how it was stored. */
const SAME = 0.9995;
/** Most neighbours that are shown. */
const SHOWN = 12;
const latest = new Latest();
let collections = [];

/** The options of `/classify` as they are set. */
export const wanted = () => state.head ? { head: state.head } : { collection: state.collection ?? "default" };

/** Asks who can vote, and keeps the choice where it is still there. */
export async function refresh(preferred) {
  const [{ collections: found, kept: place }, { data: models }] = await Promise.all([json("/collections"), json("/v1/models")]);
  // Collections of patches do not vote.
  collections = found.filter(({ kind }) => kind !== "patches");
  state.kept = place;
  const heads = models.flatMap(model => model.classifiers);
  const option = (value, text) => element("option", { value, textContent: text });
  $("voters").replaceChildren(
    ...collections.map(({ name, count }) => option(name, `${name} (${counted(count, "picture")})`)),
    ...heads.map(head => option(`head:${head}`, `classifier ${head}`)),
    ...state.kept ? [option(NEW, "a new collection…")] : [],
  );
  const names = [...$("voters").options].map(one => one.value);
  $("voters").value = [preferred, state.collection, "default", names[0]].find(name => name && names.includes(name)) ?? "";
  chosen();
  return models;
}

function chosen() {
  const { value } = $("voters");
  const head = value.startsWith("head:") ? value.slice(5) : null;
  Object.assign(state, { head, collection: head || value === NEW ? null : value || null });
  $("new-name-row").hidden = value !== NEW;
  $("teach").hidden = head !== null || !state.kept;
  tell("voters");
}

/** Says that the answer to another picture is under way. */
export function wait() {
  empty();
  $("verdict").textContent = "Looking…";
  $("vote-card").setAttribute("aria-busy", "true");
}

/** Takes away what was said of another picture. */
export const clear = () => explain("");

export async function show() {
  const { picture } = state;
  if (!picture) return;
  if (!state.kept && !state.head) return explain("This server keeps no collections: start it with --data-dir, and it can be taught.");
  if (!state.head && !state.collection) {
    return explain(`${collections.length ? "A new collection." : "There is no collection here yet."} Give this picture a label, and one begins with it.`);
  }
  try {
    const answer = await post(path("/classify", wanted()), picture, latest.next());
    if (picture !== state.picture) return;
    complain("vote-error", null);
    render(answer);
  } catch (error) {
    if (error.name === "AbortError") return;
    clear();
    complain("vote-error", error, show);
  }
}

function empty() {
  $("vote-card").removeAttribute("aria-busy");
  $("classes").replaceChildren();
  $("vote-note").textContent = "";
  $("neighbours").replaceChildren();
  $("neighbour-card").hidden = true;
  complain("vote-error", null);
}

/** Words in place of an answer. */
function explain(words) {
  empty();
  $("verdict").textContent = "—";
  $("vote-note").textContent = words;
  tell("answer", null);
}

function render(answer) {
  const { classes, neighbors } = answer.results[0];
  if (!classes.length && !neighbors.length) {
    return explain("This collection is empty. Give the picture a label below, and it is the first one in it.");
  }
  const { words, why, isKnown } = verdict(answer);
  $("vote-card").removeAttribute("aria-busy");
  $("verdict").textContent = words;
  $("classes").replaceChildren(...(isKnown ? classes : []).slice(0, 5).map(({ label, score }) => {
    const bar = element("meter", { value: score, min: 0, max: 1, ariaLabel: readable(label) });
    return element("li", {}, element("span", { textContent: readable(label) }), element("span", { textContent: percent(score) }), bar);
  }));
  $("vote-note").textContent = why;
  showNeighbours(answer.collection, neighbors);
  say(`It is: ${words}. ${why}`);
  tell("answer", answer);
}

/** What the answer comes to, why, and whether the collection holds anything like the picture. */
function verdict(answer) {
  const { label, similarity, classes, neighbors } = answer.results[0];
  const best = classes[0] && readable(classes[0].label);
  const sure = !best ? "no label" : label === null ? "undecided" : classes[0].score < UNSURE ? `perhaps ${best}` : best;
  if (answer.head) return { words: sure, why: "What a linear classifier on the features says.", isKnown: true };
  const { count } = collections.find(one => one.name === answer.collection) ?? {};
  if (label === null && similarity < answer.min_similarity) {
    const nearest = count > 1 ? `The most similar of ${counted(count, "picture")}` : "The nearest picture";
    const why = `${nearest} has a similarity of ${similarity.toFixed(2)}; what this collection knows has at least ${answer.min_similarity.toFixed(2)}.`;
    return { words: "Nothing like it here", why, isKnown: false };
  }
  const voters = neighbors.length === 1 ? "The label of the only picture that was asked."
    : `The vote of the ${neighbors.length} most similar of ${counted(count ?? neighbors.length, "picture")}.`;
  const [nearest] = neighbors;
  if (nearest.similarity >= SAME && nearest.labels.length) {
    const why = `The same picture is in the collection under this label.${neighbors.length > 1 ? ` Above: ${lowered(voters)}` : ""}`;
    return { words: readable(nearest.labels.join(", ")), why, isKnown: true };
  }
  return { words: sure, why: voters, isKnown: true };
}

const lowered = words => words[0].toLowerCase() + words.slice(1);

/** The neighbours with a stored picture as buttons that ask about it; of the others a line. */
function showNeighbours(collection, neighbors) {
  const shown = neighbors.filter(({ has_image: hasImage }) => hasImage).slice(0, SHOWN);
  const bare = neighbors.filter(({ has_image: hasImage }) => !hasImage).slice(0, SHOWN);
  const like = ({ similarity }) => similarity.toFixed(2);
  $("neighbours").replaceChildren(...shown.map(neighbour => {
    const button = element("button", { type: "button", className: "neighbour", title: `${neighbour.id}: ask about this picture` },
      thumbnail(collection, neighbour),
      element("strong", { textContent: named(neighbour) }),
      element("span", { className: "soft", textContent: `similarity ${like(neighbour)}` }));
    button.onclick = () => chooseItem(collection, neighbour.id);
    return element("li", {}, button);
  }));
  $("neighbours").hidden = !shown.length;
  $("bare-neighbours").textContent = `${shown.length ? "Also near, s" : "S"}tored without a picture: ${bare.map(one => `${named(one)} ${like(one)}`).join(" · ")}`;
  $("bare-neighbours").hidden = !bare.length;
  $("neighbour-card").hidden = !neighbors.length;
}

/** Puts the picture into the collection under a label, and asks again. */
async function teach() {
  const label = $("label").value.trim();
  const isNew = $("voters").value === NEW;
  const collection = isNew ? $("new-name").value.trim() : state.collection;
  const route = `/collections/${encodeURIComponent(collection)}`;
  if (isNew) {
    const body = JSON.stringify(state.model ? { model: state.model } : {});
    await ask(route, { method: "PUT", body, headers: { "Content-Type": "application/json" } });
  }
  const { ids: [id] } = await post(path(`${route}/items`, { labels: JSON.stringify([label]) }), state.picture);
  if (!state.taught.has(collection)) state.taught.set(collection, new Map());
  state.taught.get(collection).set(id, label);
  await refresh(collection);
  await show();
  taught(`Added to ${collection} as “${readable(label)}”, and asked again.`, async () => {
    await ask(`${route}/items/${encodeURIComponent(id)}`, { method: "DELETE" });
    state.taught.get(collection).delete(id);
    await refresh(collection);
    await show();
    taught("Taken out again.");
  });
}

function taught(words, undo) {
  const button = element("button", { type: "button", textContent: "Undo", className: "quiet" });
  button.onclick = () => undo().catch(error => complain("teach-error", error));
  $("taught").replaceChildren(words, ...(undo ? [" ", button] : []));
}

export function start() {
  $("voters").onchange = () => {
    chosen();
    if (state.picture) wait();
    show();
  };
  $("teach").onsubmit = async event => {
    event.preventDefault();
    if (!state.picture) return complain("teach-error", new Error("Choose a picture first."));
    const add = $("add"), words = add.textContent;
    Object.assign(add, { disabled: true, textContent: "Adding…" });
    $("taught").replaceChildren();
    complain("teach-error", null);
    try {
      await teach();
    } catch (error) {
      complain("teach-error", error);
    } finally {
      Object.assign(add, { disabled: false, textContent: words });
    }
  };
  on("picture", () => { $("taught").replaceChildren(); complain("teach-error", null); });
}
