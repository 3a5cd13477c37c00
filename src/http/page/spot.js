// The tab "Same spot": a point of one picture, and the spot of another that looks most like it.

import { $, complain, percent, say } from "./dom.js";
import { json, Latest } from "./api.js";
import { Board } from "./board.js";
import { explained, NO_FILE, ofFile, ofSample } from "./given.js";
import { on, path, state } from "./state.js";

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
/** As many as the server gives: one for each patch of the first picture. */
const MOST_MATCHES = 10_000;

const boards = { from: new Board($("spot-from")), to: new Board($("spot-to")) };
/** What is sent of the pictures of both sides; null before one is chosen. */
const given = { from: null, to: null };
const latest = new Latest();
/** Which side the next picture goes to that is not dropped on one. */
let next = "from";
/** The newest answer, with its matches by the number of the patch; null where there is none. */
let matched = null;
/** The chosen patch of the first picture, `[column, row]`. */
let cell = null;
/** The spot that is shown first, in shares of the sides: the middle, slightly above, where things mostly are. */
const MIDDLE = [0.5, 0.45];
let first = MIDDLE;
/** Counts choices of each side: a picture that was read too late does not take the place of a newer one. */
const choices = { from: 0, to: 0 };
/** The sides whose newest picture is being read. */
const reading = new Set();
/** Whether a picture was put on its side since the last request. */
let isDue = false;
/** Whether a request is under way. */
let isLooking = false;

/** Finds the spot of every patch at once: then pointing needs no request. */
async function match() {
  forget();
  isDue = false;
  if (!given.from || !given.to) {
    note("Now the other picture: drop or choose it.");
    showBusy();
    return;
  }
  const body = new FormData();
  for (const side of ["from", "to"]) body.append("image", given[side].picture);
  const route = path("/match", { model: state.model, mutual: false, max_matches: MOST_MATCHES });
  const signal = latest.next();
  isLooking = true;
  showBusy();
  try {
    const answer = await json(route, { method: "POST", body, signal });
    if (signal.aborted) return;
    take(answer);
  } catch (error) {
    if (signal.aborted) return;
    complain("spot-error", explained(error), matchAgain);
  }
  isLooking = false;
  showBusy();
}

/** Asks anew for the same pictures. */
function matchAgain() {
  complain("spot-error", null);
  return match();
}

function take(answer) {
  const [rows, columns] = answer.grid[0];
  matched = { ...answer, rows, columns, found: new Map() };
  for (const pair of answer.matches) {
    const [column, row] = patchAt(pair.from.map((at, axis) => at / answer.sizes[0][axis]));
    matched.found.set(row * columns + column, pair);
  }
  for (const [at, side] of ["from", "to"].entries()) {
    if (!boards[side].photo) boards[side].resize(...answer.sizes[at]);
  }
  point(patchAt(first));
  tellPlace();
}

/** The patch of the first picture that a place lies in, given in shares of the sides. */
const patchAt = ([x, y]) => [Math.min(matched.columns - 1, Math.floor(x * matched.columns)), Math.min(matched.rows - 1, Math.floor(y * matched.rows))];

/** Takes away what was found for other pictures. */
function forget() {
  latest.next();
  isLooking = false;
  matched = cell = null;
  for (const board of Object.values(boards)) board.lay(null);
  note("");
}

function note(words) {
  $("spot-note").textContent = words;
}

function showBusy() {
  const words = reading.size ? "Reading the picture…" : isLooking ? "Looking…" : "";
  $("spot-busy").textContent = words;
  $("spot-busy").hidden = !words;
}

/** Marks a patch of the first picture, and its spot in the other. */
function point(to) {
  cell = to;
  const [column, row] = cell, pair = matched.found.get(row * matched.columns + column);
  const from = [(column + 0.5) / matched.columns, (row + 0.5) / matched.rows];
  boards.from.lay(ring(from));
  if (!pair) {
    boards.to.lay(null);
    note("Of this spot nothing is known.");
    return;
  }
  const there = pair.to.map((at, axis) => at / matched.sizes[1][axis]);
  boards.to.lay(ring(there));
  note(`Similarity ${pair.similarity.toFixed(2)} of at most 1`);
}

/** Draws a ring around a place, given in shares of the sides. */
const ring = ([x, y]) => (pen, width, height) => {
  const unit = devicePixelRatio;
  for (const [colour, line] of [["#000", 7], ["#fff", 4.5], ["#0b8f7c", 2]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = line * unit;
    pen.beginPath();
    pen.arc(x * width, y * height, Math.min(15 * unit, width / 16), 0, 2 * Math.PI);
    pen.stroke();
  }
};

const place = ([x, y]) => `${percent(x)} from the left, ${percent(y)} from the top`;

function tellPlace() {
  const [column, row] = cell, pair = matched.found.get(row * matched.columns + column);
  const there = pair ? place(pair.to.map((at, axis) => at / matched.sizes[1][axis])) : "nowhere";
  say(`Spot ${place([(column + 0.5) / matched.columns, (row + 0.5) / matched.rows])}; the same in the other picture ${there}.`);
}

/** Puts pictures on `sides`; `find` answers them by their sides. What is shown stays until they are read. */
async function choose(sides, find, sample = null) {
  const own = Object.fromEntries(sides.map(side => [side, ++choices[side]]));
  // A later choice of one side leaves the other one to this choice.
  const wanted = () => sides.filter(side => own[side] === choices[side]);
  for (const side of sides) reading.add(side);
  complain("spot-error", null);
  showBusy();
  let failure = null;
  try {
    const found = await find();
    const fresh = wanted();
    if (!fresh.length) return;
    forget();
    isDue = true;
    first = sample ? sample.dataset.spot.split(" ").map(Number) : MIDDLE;
    const isPair = fresh.length === 2;
    for (const button of $("pairs").querySelectorAll("button")) button.setAttribute("aria-pressed", isPair && button === sample);
    await Promise.all(fresh.map(side => put(side, found[side], Boolean(sample))));
  } catch (error) {
    failure = error;
  }
  const ended = wanted();
  if (!ended.length) return;
  for (const side of ended) reading.delete(side);
  if (failure) complain("spot-error", failure, () => choose(ended, find, sample));
  // The last of several choices asks for all of them, even where it failed itself.
  if (isDue && !reading.size) await match();
  else showBusy();
}

/** Puts a picture on its side. */
async function put(side, one, isSample) {
  given[side] = one;
  await boards[side].show(one.picture);
  if (given[side] !== one) return;
  const unseen = boards[side].photo ? "" : "This browser cannot show the format; the server reads it.";
  $(`spot-${side}-name`).textContent = isSample ? "" : [one.name, one.done, unseen].filter(Boolean).join(" · ");
}

function chooseSample(button) {
  const [from, to] = button.querySelectorAll("img");
  next = "from";
  return choose(["from", "to"], async () => ({ from: await ofSample(from), to: await ofSample(to) }), button);
}

/** Takes files that were dropped, pasted or chosen: two are both pictures, one goes to the side that it was dropped on, or in turn. */
export function receive(files, target) {
  if (!files.length) return complain("spot-error", new Error(NO_FILE));
  if (files.length > 1) return choose(["from", "to"], async () => ({ from: await ofFile(files[0]), to: await ofFile(files[1]) }));
  const side = target?.closest("#spot-from-card") ? "from" : target?.closest("#spot-to-card") ? "to" : next;
  next = side === "from" ? "to" : "from";
  return choose([side], async () => ({ [side]: await ofFile(files[0]) }));
}

export function start() {
  const canvas = $("spot-from");
  const follow = event => {
    if (!matched) return;
    const [x, y] = boards.from.pixelAt(event), { width, height } = boards.from.size;
    point(patchAt([x / width, y / height]));
  };
  canvas.addEventListener("pointermove", event => event.pointerType === "mouse" && follow(event));
  canvas.addEventListener("pointerdown", event => { follow(event); if (matched) tellPlace(); });
  canvas.addEventListener("keydown", event => {
    const step = STEPS[event.key];
    if (!step || !matched) return;
    event.preventDefault();
    const within = (at, most) => Math.min(most - 1, Math.max(0, at));
    point([within(cell[0] + step[0], matched.columns), within(cell[1] + step[1], matched.rows)]);
    tellPlace();
  });
  for (const side of ["from", "to"]) {
    $(`spot-${side}-file`).onchange = event => {
      if (event.target.files.length) receive([...event.target.files], event.target);
      event.target.value = "";
    };
  }
  const pairs = [...$("pairs").querySelectorAll("button")];
  for (const pair of pairs) pair.onclick = () => chooseSample(pair);
  on("tab", name => name === "spot" && !given.from && chooseSample(pairs[0]));
  on("model", () => given.from && matchAgain());
}
