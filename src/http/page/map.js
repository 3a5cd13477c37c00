// A map of the collection: what the network finds alike lies close together. Labels only give the colours.

import { $, complain, element } from "./dom.js";
import { ask, json, Latest, post } from "./api.js";
import { choose } from "./picture.js";
import { on, path, state } from "./state.js";
import { imagePath, thumbnail } from "./thumbnail.js";

/** Most labels that are named; rarer ones are grey. */
const NAMED = 14;
const MARGIN = 22;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const canvas = $("map");
const latest = new Latest();
/** The map as it was answered; null before. */
let map = null;
let colours = new Map();
/** Points on the canvas, in CSS pixels. */
let places = [];
/** The point under the pointer or the keyboard. */
let current = null;
/** The label that is looked at alone. */
let only = null;
/** The newest vote, which says where the picture lies. */
let answer = null;
/** Its nearest neighbours on the map. */
let near = [];
let isSeen = false;
let isStale = true;
/** The first picture goes first: a map takes the server a while. */
let hasLooked = false;

async function load() {
  if (!isSeen || !isStale || !hasLooked) return;
  isStale = false;
  const { collection } = state;
  if (!collection) return empty("A map needs a collection.");
  empty(`Arranging “${collection}”… The first time takes a few seconds.`);
  try {
    const found = await json(`/collections/${encodeURIComponent(collection)}/map`, { signal: latest.next() });
    if (collection !== state.collection) return;
    if (!found.points.length) return empty(`A map needs at least 5 pictures; “${collection}” has ${found.count}.`);
    map = found;
    const { points, count } = map;
    $("map-note").textContent = (points.length < count ? `${points.length.toLocaleString("en")} of ${count.toLocaleString("en")} pictures. ` : `${count} pictures. `)
      + "Point at one to see it; click it to ask about it. With the keyboard: arrow keys and Enter.";
    legend();
    $("map-frame").classList.add("ready");
    complain("map-error", null);
    paint();
    locate();
  } catch (error) {
    if (error.name === "AbortError") return;
    empty("");
    complain("map-error", error);
  }
}

function empty(words) {
  $("map-frame").classList.remove("ready");
  $("map-note").textContent = words;
  $("legend").replaceChildren();
  complain("map-error", null);
  look(null);
  map = null;
  near = [];
  only = null;
  paint();
}

/** The most frequent labels with their colours; each is a button that shows its points alone. */
function legend() {
  const counts = new Map();
  for (const { labels: [label] } of map.points) if (label !== undefined) counts.set(label, (counts.get(label) ?? 0) + 1);
  const named = [...counts].sort((a, b) => b[1] - a[1]).slice(0, NAMED).map(([label]) => label);
  const hue = at => Math.round(at * 360 / named.length);
  colours = new Map(named.map((label, at) => [label, `light-dark(oklch(0.6 0.16 ${hue(at)}), oklch(0.76 0.14 ${hue(at)}))`]));
  $("legend").replaceChildren(...named.map(label => {
    const dot = element("i");
    dot.style.background = colours.get(label);
    const button = element("button", { type: "button", className: "chip", ariaPressed: "false" }, dot, label);
    button.onclick = () => {
      only = only === label ? null : label;
      for (const other of $("legend").children) other.setAttribute("aria-pressed", other === button && only !== null);
      paint();
    };
    return button;
  }));
}

/** A colour of the style sheet as a canvas knows it, for light or dark. */
function resolved(colour) {
  canvas.style.color = colour;
  return getComputedStyle(canvas).color;
}

function paint() {
  const { width, height } = canvas.getBoundingClientRect();
  const dense = devicePixelRatio;
  Object.assign(canvas, { width: Math.round(width * dense), height: Math.round(height * dense) });
  places = [];
  if (!map || !width) return;
  const pen = canvas.getContext("2d");
  pen.scale(dense, dense);
  const side = Math.min(width, height) - 2 * MARGIN, wide = Math.max(0, Math.min(width - 2 * MARGIN, side * 1.7));
  const at = ({ x, y }) => [width / 2 + (x - 0.5) * wide, height / 2 + (y - 0.5) * side];
  places = map.points.map(at);
  const radius = Math.min(5, Math.max(2.2, 90 / Math.sqrt(places.length)));
  const inks = new Map([...colours].map(([label, colour]) => [label, resolved(colour)])), grey = resolved("var(--soft)");
  map.points.forEach(({ labels: [label] }, index) => {
    pen.globalAlpha = only === null || only === label ? 0.85 : 0.08;
    pen.fillStyle = inks.get(label) ?? grey;
    if (!inks.has(label) && only === null) pen.globalAlpha = 0.35;
    disc(pen, places[index], radius);
  });
  pen.globalAlpha = 1;
  mark(pen);
  if (current !== null) ring(pen, places[current], radius + 3, resolved("var(--text)"));
}

function disc(pen, [x, y], radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fill();
}

function ring(pen, [x, y], radius, colour) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.lineWidth = 2.5;
  pen.strokeStyle = colour;
  pen.stroke();
}

/** The picture's nearest neighbours that are on the map: of the vote's, or, where the map is a sample without them, of more. */
async function locate() {
  near = [];
  if (!map || answer?.collection !== map.collection) return;
  const { picture } = state, shown = map;
  const ids = new Set(map.points.map(({ id }) => id));
  const among = neighbors => neighbors.filter(({ id }) => ids.has(id)).slice(0, 3);
  near = among(answer.results[0].neighbors);
  if (!near.length && map.points.length) {
    const route = path(`/collections/${encodeURIComponent(map.collection)}/search`, { k: 200 });
    const found = await post(route, picture).catch(() => null);
    if (found && picture === state.picture && shown === map) near = among(found.results[0].neighbors);
  }
  paint();
}

/** The picture lies among its neighbours. */
function mark(pen) {
  if (!near.length) return;
  const index = new Map(map.points.map(({ id }, at) => [id, at]));
  // Much nearer than the others: almost alone.
  const weights = near.map(({ similarity }) => Math.exp((similarity - near[0].similarity) / 0.02));
  const sum = weights.reduce((a, b) => a + b);
  const place = [0, 1].map(axis => near.reduce((total, { id }, at) => total + weights[at] * places[index.get(id)][axis], 0) / sum);
  pen.fillStyle = resolved("var(--mark)");
  disc(pen, place, 6);
  ring(pen, place, 10, resolved("var(--mark)"));
  pen.font = `600 13px ${getComputedStyle(canvas).fontFamily}`;
  pen.lineWidth = 4;
  pen.strokeStyle = resolved("var(--card)");
  pen.strokeText("your picture", place[0] + 15, place[1] + 4);
  pen.fillText("your picture", place[0] + 15, place[1] + 4);
}

/** Shows the point's picture and label beside it. */
function look(at) {
  if (at === current) return;
  current = at;
  const tip = $("map-tip");
  tip.hidden = at === null;
  if (at === null) return paint();
  const point = map.points[at], [x, y] = places[at];
  tip.replaceChildren(thumbnail(map.collection, point), element("strong", { textContent: point.labels.join(", ") || "no label" }),
    element("span", { className: "soft", textContent: point.id }));
  const { width, height } = canvas.getBoundingClientRect();
  tip.style.left = `${Math.min(Math.max(x, 80), width - 80)}px`;
  tip.style.top = `${y}px`;
  tip.classList.toggle("below", y < height / 2);
  paint();
}

function nearest(event) {
  const box = canvas.getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  let best = null, distance = 18 ** 2;
  places.forEach((place, at) => {
    const here = (place[0] - x) ** 2 + (place[1] - y) ** 2;
    if (here < distance && (only === null || map.points[at].labels[0] === only)) [best, distance] = [at, here];
  });
  return best;
}

/** The next point in a direction: near, and not far off the line. */
function beside(at, [dx, dy]) {
  const [x, y] = places[at];
  let best = at, least = Infinity;
  places.forEach((place, other) => {
    const along = (place[0] - x) * dx + (place[1] - y) * dy, across = Math.abs((place[0] - x) * dy) + Math.abs((place[1] - y) * dx);
    const cost = along + 3 * across;
    if (other !== at && along > 0.5 && across <= along * 2 && cost < least) [best, least] = [other, cost];
  });
  return best;
}

/** Makes the current point's picture the one that the page is about. */
async function open() {
  if (current === null) return;
  const point = map.points[current];
  if (!point.has_image) return complain("map-error", new Error(`“${point.id}” was stored without a picture.`));
  try {
    const picture = await (await ask(imagePath(map.collection, point.id))).blob();
    choose(picture, point.id.split("/").pop());
    $("stage-card").scrollIntoView({ behavior: "smooth" });
  } catch (error) {
    complain("map-error", error);
  }
}

export function start() {
  canvas.onpointermove = event => look(nearest(event));
  canvas.onpointerleave = event => event.pointerType !== "touch" && look(null);
  canvas.onclick = event => {
    const at = nearest(event), again = at === current;
    look(at);
    // A finger cannot hover: its first tap looks, its second opens.
    if (event.pointerType !== "touch" || again) open();
  };
  canvas.onblur = () => look(null);
  canvas.onkeydown = event => {
    if (!map) return;
    if (event.key === "Enter") return open();
    const step = ARROWS[event.key];
    if (!step) return;
    event.preventDefault();
    look(current === null ? 0 : beside(current, step));
  };
  on("voters", () => { isStale = true; load(); });
  on("answer", found => { answer = found; hasLooked = true; locate(); paint(); load(); });
  new IntersectionObserver(([entry]) => { isSeen = entry.isIntersecting; load(); }, { rootMargin: "200px" }).observe(canvas);
  new ResizeObserver(paint).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  on("theme", paint);
}
