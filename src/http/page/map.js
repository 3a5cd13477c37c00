// A map of the collection: what the network finds alike lies close together. Labels only give the colours.

import { $, complain, counted, element, readable } from "./dom.js";
import { json, Latest, post } from "./api.js";
import { chooseItem } from "./picture.js";
import { on, path, state } from "./state.js";
import { named, thumbnail } from "./thumbnail.js";

/** Colours of the most frequent labels, for light and dark: each hue once, light and dark ones in turn. Rarer labels are grey. */
const INKS = [250, 45, 145, 325, 95, 205, 285, 20, 170, 70].map((hue, at) => {
  const [light, dark] = at % 2 ? [0.72, 0.84] : [0.5, 0.68];
  return `light-dark(oklch(${light} 0.14 ${hue}), oklch(${dark} 0.13 ${hue}))`;
});
/** How far from a pointer a point is met, in CSS pixels; one with a picture is met before one without. */
const REACH = 18, NEAR = 9;
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
  // The map of before what was just added stays until there is the new one.
  if (map?.collection !== collection) empty("");
  wait(map ? "Arranging it anew…" : `Arranging “${collection}”… The first time takes a few seconds.`);
  try {
    const found = await json(`/collections/${encodeURIComponent(collection)}/map`, { signal: latest.next() });
    if (collection !== state.collection) return;
    wait("");
    look(null);
    if (!found.points.length) return empty(`A map needs at least 5 pictures; “${collection}” has ${found.count}.`);
    map = found;
    describe();
    legend();
    $("map-frame").classList.add("ready");
    complain("map-error", null);
    paint();
    locate();
  } catch (error) {
    if (error.name === "AbortError") return;
    empty("");
    complain("map-error", error, () => { isStale = true; load(); });
  }
}

/** Words on the map while it is made. */
function wait(words) {
  $("map-busy").textContent = words;
  $("map-busy").hidden = !words;
}

function describe() {
  const { points, count } = map, bare = points.filter(({ has_image: hasImage }) => !hasImage).length;
  $("map-note").textContent = `${points.length < count ? `${points.length.toLocaleString("en")} of ` : ""}${counted(count, "picture")}; those that look alike lie close together. `
    + "Point at a dot to see its picture, click it to ask about it; with the keyboard: arrow keys and Enter."
    + (bare ? ` Small dots (${bare.toLocaleString("en")}) were stored without a picture.` : "");
}

function empty(words) {
  $("map-frame").classList.remove("ready");
  $("map-note").textContent = words;
  $("legend").replaceChildren();
  complain("map-error", null);
  wait("");
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
  const frequent = [...counts].sort((a, b) => b[1] - a[1]).slice(0, INKS.length).map(([label]) => label);
  only = frequent.includes(only) ? only : null;
  colours = new Map(frequent.map((label, at) => [label, INKS[at]]));
  $("legend").replaceChildren(...frequent.map(label => {
    const dot = element("i");
    dot.style.background = colours.get(label);
    const button = element("button", { type: "button", className: "chip", ariaPressed: String(label === only) }, dot, readable(label));
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
  map.points.forEach(({ labels: [label], has_image: hasImage }, index) => {
    pen.globalAlpha = only === null || only === label ? 0.85 : 0.08;
    pen.fillStyle = inks.get(label) ?? grey;
    if (!inks.has(label) && only === null) pen.globalAlpha = 0.35;
    disc(pen, places[index], hasImage ? radius : radius * 0.55);
  });
  pen.globalAlpha = 1;
  markTaught(pen);
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
  const label = state.taught.get(map.collection)?.get(near[0].id);
  flag(pen, place, label === undefined ? "your picture" : `your picture: ${readable(label)}`);
}

/** What was added on this page, by name. */
function markTaught(pen) {
  const labels = state.taught.get(map.collection);
  if (!labels?.size) return;
  map.points.forEach(({ id }, at) => {
    // The picture that lies just there has its own mark.
    if (labels.has(id) && near[0]?.id !== id) flag(pen, places[at], readable(labels.get(id)));
  });
}

/** A mark with words beside it, on the side where there is room. */
function flag(pen, place, words) {
  const [x, y] = place, ink = resolved("var(--mark)");
  pen.fillStyle = ink;
  disc(pen, place, 6);
  ring(pen, place, 10, ink);
  pen.font = `600 13px ${getComputedStyle(canvas).fontFamily}`;
  pen.lineWidth = 4;
  pen.strokeStyle = resolved("var(--card)");
  const isRight = x + 15 + pen.measureText(words).width < canvas.clientWidth;
  pen.textAlign = isRight ? "left" : "right";
  const at = [isRight ? x + 15 : x - 15, y + 4];
  pen.strokeText(words, ...at);
  pen.fillText(words, ...at);
}

/** Shows the point's picture and label beside it. */
function look(at) {
  if (at === current) return;
  current = at;
  const tip = $("map-tip");
  tip.hidden = at === null;
  if (at === null) return paint();
  const point = map.points[at], [x, y] = places[at];
  tip.replaceChildren(...point.has_image ? [thumbnail(map.collection, point)] : [], element("strong", { textContent: named(point) }),
    element("span", { className: "soft", textContent: point.id }),
    ...point.has_image ? [] : [element("span", { className: "soft", textContent: "stored without a picture" })]);
  const { width, height } = canvas.getBoundingClientRect();
  tip.style.left = `${Math.min(Math.max(x, 80), width - 80)}px`;
  tip.style.top = `${y}px`;
  tip.classList.toggle("below", y < height / 2);
  paint();
}

function nearest(event) {
  const box = canvas.getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  let best = null, least = REACH;
  places.forEach((place, at) => {
    const { labels: [label], has_image: hasImage } = map.points[at];
    const distance = Math.hypot(place[0] - x, place[1] - y) + (hasImage ? 0 : NEAR);
    if (distance < least && (only === null || label === only)) [best, least] = [at, distance];
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

/** Makes the current point's picture the one that the page is about; of one without a picture the tip says so. */
function open() {
  if (current !== null && map.points[current].has_image) chooseItem(map.collection, map.points[current].id);
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
  on("picture", () => { answer = null; near = []; paint(); });
  on("answer", found => { answer = found; hasLooked = true; locate(); paint(); load(); });
  new IntersectionObserver(([entry]) => { isSeen = entry.isIntersecting; load(); }, { rootMargin: "200px" }).observe(canvas);
  new ResizeObserver(paint).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  on("theme", paint);
}
