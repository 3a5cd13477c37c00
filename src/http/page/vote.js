// What the picture is: the vote of its neighbours, or of a classifier; and teaching it a new one.

import { $, breakable, complain, element, percent, say } from "./dom.js";
import { ask, json, Latest, post } from "./api.js";
import { on, path, state, tell } from "./state.js";
import { thumbnail } from "./thumbnail.js";

const NEW = "new:";
/** Below this share of the vote the best class is a guess. */
const UNSURE = 0.35;
const latest = new Latest();
let collections = [];
/** Whether the server has a place to keep collections. */
let kept = true;

/** The options of `/classify` as they are set. */
export const wanted = () => state.head ? { head: state.head } : { collection: state.collection ?? "default" };

/** Asks who can vote, and keeps the choice where it is still there. */
export async function refresh(preferred) {
  const [{ collections: found, kept: place }, { data: models }] = await Promise.all([json("/collections"), json("/v1/models")]);
  collections = found;
  kept = place;
  const heads = models.flatMap(model => model.classifiers);
  const option = (value, text) => element("option", { value, textContent: text });
  $("voters").replaceChildren(
    ...found.map(({ name, count }) => option(name, `${name} (${count.toLocaleString("en")})`)),
    ...heads.map(head => option(`head:${head}`, `classifier ${head}`)),
    ...kept ? [option(NEW, "a new collection…")] : [],
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
  $("teach").hidden = head !== null || !kept;
  tell("voters");
}

export async function show() {
  const { picture } = state;
  if (!picture) return;
  if (!kept && !state.head) return explain("This server keeps no collections: start it with --data-dir, and it can be taught.");
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
    explain("");
    complain("vote-error", error);
  }
}

/** Words in place of an answer. */
function explain(words) {
  $("verdict").textContent = words ? "—" : "";
  $("classes").replaceChildren();
  $("vote-note").textContent = words;
  $("neighbours").replaceChildren();
  $("neighbour-card").hidden = true;
  complain("vote-error", null);
  tell("answer", null);
}

function render(answer) {
  const { label, classes, neighbors } = answer.results[0];
  const { count } = collections.find(one => one.name === answer.collection) ?? {};
  if (!classes.length) return explain("This collection is empty. Give the picture a label below, and it is the first one in it.");
  $("verdict").textContent = label === null ? "undecided" : classes[0].score < UNSURE ? `perhaps ${label}` : label;
  $("classes").replaceChildren(...classes.slice(0, 5).map(({ label, score }) => {
    const bar = element("meter", { value: score, min: 0, max: 1, ariaLabel: label });
    return element("li", {}, element("span", { textContent: label }), element("span", { textContent: percent(score) }), bar);
  }));
  $("vote-note").textContent = answer.head ? "What a linear classifier on the features says."
    : `Voted by the ${neighbors.length} most similar of ${(count ?? neighbors.length).toLocaleString("en")} pictures.`;
  $("neighbours").replaceChildren(...neighbors.slice(0, 12).map(neighbour => element("li", {},
    thumbnail(answer.collection, neighbour),
    element("strong", { textContent: breakable(neighbour.labels.join(", ")) || "no label" }),
    element("span", { className: "soft", textContent: `${neighbour.similarity.toFixed(2)} alike`, title: neighbour.id }))));
  $("neighbour-card").hidden = !neighbors.length;
  say(`It is: ${label ?? "undecided"}, ${percent(classes[0].score)}.`);
  tell("answer", answer);
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
  await refresh(collection);
  await show();
  taught(`Added to ${collection} as “${label}”, and asked again.`, async () => {
    await ask(`${route}/items/${encodeURIComponent(id)}`, { method: "DELETE" });
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
  $("voters").onchange = () => { chosen(); show(); };
  $("teach").onsubmit = async event => {
    event.preventDefault();
    if (!state.picture) return complain("teach-error", new Error("Choose a picture first."));
    $("add").disabled = true;
    $("taught").replaceChildren();
    complain("teach-error", null);
    try {
      await teach();
    } catch (error) {
      complain("teach-error", error);
    } finally {
      $("add").disabled = false;
    }
  };
  on("picture", () => { $("taught").replaceChildren(); complain("teach-error", null); });
}
