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
/** Counts choices: a picture that was read too late does not take the place of a newer one. */
let choices = 0;

/** Finds the spot of every patch at once: then pointing needs no request. */
async function match() {
  forget();
  if (!given.from || !given.to) {
    note("Now the other picture: drop or choose it.");
    return;
  }
  const body = new FormData();
  for (const side of ["from", "to"]) body.append("image", given[side].picture);
  const route = path("/match", { model: state.model, mutual: false, max_matches: MOST_MATCHES });
  const [signal, choice] = [latest.next(), choices];
  busy("Looking…");
  try {
    const answer = await json(route, { method: "POST", body, signal });
    if (choice !== choices) return;
    complain("spot-error", null);
    take(answer);
  } catch (error) {
    if (error.name === "AbortError" || choice !== choices) return;
    complain("spot-error", explained(error), match);
  }
  busy("");
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
  matched = cell = null;
  for (const board of Object.values(boards)) board.lay(null);
  note("");
  busy("");
}

function note(words) {
  $("spot-note").textContent = words;
}

function busy(words) {
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

/** Puts pictures on their sides; `find` answers them by their sides. */
async function choose(find, sample = null) {
  const choice = ++choices;
  complain("spot-error", null);
  forget();
  busy("Reading the picture…");
  for (const button of $("pairs").querySelectorAll("button")) button.setAttribute("aria-pressed", button === sample);
  try {
    const found = await find();
    if (choice !== choices) return;
    first = sample ? sample.dataset.spot.split(" ").map(Number) : MIDDLE;
    for (const [side, one] of Object.entries(found)) {
      given[side] = one;
      await boards[side].show(one.picture);
      if (choice !== choices) return;
      const unseen = boards[side].photo ? "" : "This browser cannot show the format; the server reads it.";
      $(`spot-${side}-name`).textContent = sample ? "" : [one.name, one.done, unseen].filter(Boolean).join(" · ");
    }
  } catch (error) {
    if (choice !== choices) return;
    busy("");
    return complain("spot-error", error, () => choose(find, sample));
  }
  await match();
}

function chooseSample(button) {
  const [from, to] = button.querySelectorAll("img");
  next = "from";
  return choose(async () => ({ from: await ofSample(from), to: await ofSample(to) }), button);
}

/** Takes files that were dropped, pasted or chosen: two are both pictures, one goes to the side that it was dropped on, or in turn. */
export function receive(files, target) {
  if (!files.length) return complain("spot-error", new Error(NO_FILE));
  if (files.length > 1) return choose(async () => ({ from: await ofFile(files[0]), to: await ofFile(files[1]) }));
  const side = target?.closest("#spot-from-card") ? "from" : target?.closest("#spot-to-card") ? "to" : next;
  next = side === "from" ? "to" : "from";
  return choose(async () => ({ [side]: await ofFile(files[0]) }));
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
  on("model", () => given.from && match());
}
