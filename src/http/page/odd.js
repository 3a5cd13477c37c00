// The tab "Odd one out": good pictures, a suspicious one, and what of it no good picture has.
//
// The good ones are kept in a collection of patches on the server (`patch_collection.js`), for as long as the page is open.

import { $, complain, counted, element, say } from "./dom.js";
import { Latest, post } from "./api.js";
import { Board } from "./board.js";
import { explained, NO_FILE, ofFile, ofSample } from "./given.js";
import { numbers, pixels } from "./heat.js";
import { PatchCollection } from "./patch_collection.js";
import { on, path, state } from "./state.js";

/** Files beyond these good ones are suspicious, where they are not dropped on the good ones. */
const ENOUGH = 3;
/** Most good pictures: more are a collection of one's own. */
const MOST = 30;
/** With fewer good pictures the line between good and odd is rough. */
const SURE = 8;

const board = new Board($("suspect"));
const collection = new PatchCollection();
const latest = new Latest();
/** The good pictures: `{ id, name, picture, url }`. */
let goods = [];
/** The suspicious picture: `{ name, picture }`. */
let suspect = null;
/** Counts what was changed: an answer to what was before is not shown. */
let changes = 0;
/** Counts choices of the suspicious picture: one that was read too late does not take the place of a newer one. */
let choices = 0;
/** Counts new beginnings: good pictures that were chosen before the newest one are not added after it. */
let epoch = 0;
/** Counts what the visitor does: a sample that was loaded too late does not replace what was given meanwhile. */
let actions = 0;
let isRunning = false;
/** The newest run, which may have ended. */
let running = null;

/** Asks anew. One request at a time: two would both make the collection. */
function compare() {
  latest.next();
  changes++;
  forget();
  if (!isRunning) running = run();
  return running;
}

/** Asks until nothing was changed meanwhile. */
async function run() {
  isRunning = true;
  $("suspect").setAttribute("aria-busy", "true");
  for (let seen = -1; seen !== changes;) {
    seen = changes;
    if (suspect && goods.length) await ask(() => seen !== changes);
  }
  isRunning = false;
  busy("");
  $("suspect").removeAttribute("aria-busy");
}

async function ask(isOld) {
  $("suspect-frame").hidden = false;
  busy("Looking…");
  const tell = (at, of) => busy(`Looking at good picture ${at} of ${of}…`);
  const compared = route => {
    showPlace();
    busy("Comparing…");
    return post(path(`${route}/anomaly`, { model: state.model, format: "heatmap" }), suspect.picture, latest.next());
  };
  let leftOut = null;
  try {
    for (;;) {
      try {
        const answer = await collection.with(goods, tell, isOld, compared);
        if (isOld()) return;
        if (leftOut) complain("odd-error", leftOut);
        return show(answer.results[0]);
      } catch (error) {
        if (!error.good) throw error;
        // The others are compared all the same.
        leftOut = new Error(`${error.good.name} was left out: ${error.message}`);
        takeOut(error.good);
        if (!goods.length) throw leftOut;
      }
    }
  } catch (error) {
    if (isOld() || error.name === "AbortError") return;
    decide("");
    if (!board.photo) $("suspect-frame").hidden = true;
    complain("odd-error", explained(error), compare);
  }
}

/** Takes a picture out of the good ones. */
function takeOut(good) {
  goods = goods.filter(other => other !== good);
  URL.revokeObjectURL(good.url);
  showGoods();
}

function show({ score, threshold, is_anomalous: isOdd, nearest, heatmap, width, height }) {
  if (!board.photo) board.resize(width, height);
  const map = numbers(heatmap);
  // Dark up to what good pictures have, too.
  const low = threshold === null ? 0 : threshold / 2;
  const cells = pixels(map, low, Math.max(2.5 * (threshold ?? 0), ...map.values));
  board.lay((pen, wide, high) => {
    pen.fillStyle = "rgb(8 8 14 / 35%)";
    pen.fillRect(0, 0, wide, high);
    pen.drawImage(cells, 0, 0, wide, high);
  });
  const words = isOdd === null ? "No verdict yet" : isOdd ? "The odd one" : "Like the good ones";
  decide(words, isOdd === true);
  showScore(score, threshold);
  const like = goods.find(good => good.id === nearest[0]?.id)?.name;
  const rough = goods.length < SURE ? ` With ${counted(goods.length, "good picture")} that line is rough.` : "";
  $("odd-why").textContent = threshold === null ? "With a second good picture there is a line to compare the score with."
    : `${isOdd ? "Bright is what no good picture has." : "Brightest is what is least like them."} Score ${score.toFixed(2)}; the good ones, each compared with the others, reach ${threshold.toFixed(2)}.${rough}${like ? ` Most like it: ${like}.` : ""}`;
  $("odd-fine").hidden = !isOdd || goods.length >= MOST;
  say(`${words}. ${$("odd-why").textContent}`);
}

/** The verdict in words; empty where there is none. */
function decide(words, isBad = false) {
  $("odd-verdict").textContent = words;
  $("odd-verdict").hidden = !words;
  $("odd-verdict").classList.toggle("bad", isBad);
}

/** The score as a bar, with a mark where the line runs. */
function showScore(score, threshold) {
  const most = 1.3 * Math.max(score, threshold ?? 0, 1e-6);
  const bar = $("odd-score");
  bar.hidden = false;
  bar.querySelector("meter").value = score / most;
  bar.style.setProperty("--at", `${100 * (threshold ?? 0) / most}%`);
  bar.classList.toggle("lined", threshold !== null);
}

/** Takes away what was said of other pictures. */
function forget() {
  complain("odd-error", null);
  board.lay(null);
  decide(suspect && goods.length ? "Looking…" : "");
  $("odd-score").hidden = $("odd-fine").hidden = true;
  $("odd-why").textContent = suspect && goods.length ? "" : goods.length ? "Now show a suspicious picture." : "Show good pictures first.";
}

function busy(words) {
  $("suspect-busy").textContent = words;
  $("suspect-busy").hidden = !words;
}

function showGoods() {
  $("goods").replaceChildren(...goods.map(good => {
    const remove = element("button", { type: "button", className: "remove", textContent: "×", ariaLabel: `Take ${good.name} out`, title: "Take it out" });
    remove.onclick = () => {
      takeOut(good);
      ($("goods").querySelector("button") ?? $("good-file")).focus();
      compare();
    };
    return element("li", {}, element("img", { src: good.url, alt: good.name, title: good.name }), remove);
  }));
  $("goods").hidden = !goods.length;
  $("odd-again").hidden = !goods.length && !suspect;
}

/** Where the good pictures are kept. */
function showPlace() {
  const { names } = collection, noun = names.length > 1 ? "collections" : "collection";
  $("odd-place").textContent = names.length ? `Kept on the server as the ${noun} ${names.join(", ")}, until you start again or leave this page.` : "";
}

function addGoods(pictures) {
  const room = MOST - goods.length;
  const added = pictures.slice(0, room).map(({ picture, name }) => ({ id: crypto.getRandomValues(new Uint32Array(2)).join("-"), name, picture, url: URL.createObjectURL(picture) }));
  goods = [...goods, ...added];
  showGoods();
  return pictures.length <= room;
}

/** Makes a picture the suspicious one; `find` answers it. */
async function choose(find) {
  const choice = ++choices;
  actions++;
  complain("odd-error", null);
  try {
    const found = await find();
    if (choice !== choices) return;
    suspect = found;
    $("suspect-frame").hidden = false;
    $("suspect").setAttribute("aria-label", `The suspicious picture ${found.name}; bright is what no good picture has.`);
    showGoods();
    compare();
    await board.show(found.picture);
    // The comparison may have failed before the browser had read the picture.
    if (choice === choices && board.photo) $("suspect-frame").hidden = false;
  } catch (error) {
    if (choice === choices) complain("odd-error", error, () => choose(find));
  }
}

/** Takes files that were dropped, pasted or chosen: good ones until there are enough, or what they were dropped on. */
export async function receive(files, target) {
  if (!state.kept) return;
  if (!files.length) return complain("odd-error", new Error(NO_FILE));
  const isGood = target?.closest("#good-card") ? true : target?.closest("#suspect-card") ? false : goods.length < ENOUGH;
  if (!isGood) return choose(() => ofFile(files[0]));
  actions++;
  const begun = epoch;
  const read = await Promise.allSettled(files.slice(0, MOST + 1).map(ofFile));
  if (begun !== epoch) return;
  const hasRoom = addGoods(read.filter(({ status }) => status === "fulfilled").map(({ value }) => value));
  compare();
  const failed = read.find(({ status }) => status === "rejected");
  if (failed) complain("odd-error", failed.reason);
  if (!hasRoom) complain("odd-error", new Error(`These are more than ${MOST} good pictures: the others were left out.`));
}

/** The sample: its good pictures, and the first of its suspicious ones. */
async function sample() {
  const button = $("odd-sample"), action = ++actions;
  let pictures;
  try {
    pictures = await Promise.all([...button.querySelectorAll(".good")].map(ofSample));
  } catch (error) {
    if (action === actions) complain("odd-error", error, sample);
    return;
  }
  if (action !== actions) return;
  clear();
  addGoods(pictures);
  $("suspects").hidden = false;
  $("suspect-card").scrollIntoView({ behavior: "smooth", block: "nearest" });
  await choose(() => ofSample(button.querySelector(".odd")));
}

function clear() {
  for (const good of goods) URL.revokeObjectURL(good.url);
  goods = [];
  suspect = null;
  choices++;
  epoch++;
  actions++;
  board.clear();
  $("suspect-frame").hidden = true;
  $("suspects").hidden = true;
  showGoods();
}

/** Begins anew: nothing of it stays on the server. */
async function again() {
  clear();
  $("good-file").focus();
  await compare();
  await end();
}

/** Deletes the good pictures on the server. */
async function end() {
  complain("odd-error", null);
  await collection.end().catch(error => complain("odd-error", error, end));
  showPlace();
}

/** Whether this server can keep the good pictures. */
function offer() {
  $("odd-off").hidden = state.kept;
  for (const id of ["odd-sample", "good-file", "suspect-file"]) $(id).disabled = !state.kept;
}

export function start() {
  for (const [id, card] of [["good-file", "good-card"], ["suspect-file", "suspect-card"]]) {
    $(id).onchange = event => {
      if (event.target.files.length) receive([...event.target.files], $(card));
      event.target.value = "";
    };
  }
  $("odd-again").onclick = again;
  $("odd-sample").onclick = sample;
  for (const button of $("suspects").querySelectorAll("button")) button.onclick = () => choose(() => ofSample(button.querySelector("img")));
  $("odd-fine").firstChild.onclick = () => {
    if (!suspect) return;
    actions++;
    addGoods([suspect]);
    compare();
  };
  // Another model has a collection of its own.
  on("model", async () => {
    // Where that fails, the next end deletes it.
    await collection.end().catch(() => {});
    showPlace();
    compare();
  });
  on("voters", offer);
  addEventListener("pagehide", () => collection.leave().then(showPlace));
  forget();
}
