// The picture on its canvas, with what the model sees in it laid over.

import { $ } from "./dom.js";
import { state } from "./state.js";

/** Widest and tallest shape that is shown as it is; what is more extreme is drawn out, or it would be a line. */
const MOST_EXTREME = 20;

/** The picture as the browser reads it; null where it cannot. */
let photo = null;
/** Its size in pixels, upright: the server's word where the browser has none. */
export const size = { width: 0, height: 0 };
let overlay = null;
const canvas = $("canvas");
/** Words of what is under way, oldest first. */
const underWay = [];

/** Says over the picture that something is under way, until the function that it answers is called. */
export function showBusy(words) {
  const entry = { words };
  underWay.push(entry);
  sayBusy();
  return () => {
    underWay.splice(underWay.indexOf(entry), 1);
    sayBusy();
  };
}

function sayBusy() {
  $("busy").hidden = !underWay.length;
  $("busy").textContent = underWay.at(-1)?.words ?? "";
}

/** Shows another picture, without anything over it. */
export async function show(picture) {
  overlay = null;
  photo = await createImageBitmap(picture).catch(() => null);
  $("frame").hidden = false;
  note(state.done);
  resize(photo?.width ?? 4, photo?.height ?? 3);
}

/** The server has read the picture, and says its size: that counts where the browser cannot read it. */
export function sized(width, height) {
  if (photo) return;
  note("Your browser cannot show this format. The server reads it: the outline is drawn without the picture.");
  if (width !== size.width || height !== size.height) resize(width, height);
}

/** Nothing can be shown over the picture; where the browser cannot read it either, there is none. */
export function fail() {
  lay(null);
  if (!photo) $("frame").hidden = true;
}

function note(words) {
  $("picture-note").textContent = words;
  $("picture-note").hidden = !words;
}

function resize(width, height) {
  Object.assign(size, { width, height });
  const ratio = Math.min(MOST_EXTREME, Math.max(1 / MOST_EXTREME, width / height));
  canvas.style.aspectRatio = ratio === width / height ? `${width} / ${height}` : ratio;
  canvas.style.setProperty("--ratio", ratio);
  paint();
  // What is scrolled can be scrolled with the keyboard, too.
  const stage = $("stage"), scrolls = stage.scrollWidth > stage.clientWidth || stage.scrollHeight > stage.clientHeight;
  for (const [name, value] of [["tabindex", "0"], ["role", "region"], ["aria-label", "The picture, to scroll"]]) {
    if (scrolls) stage.setAttribute(name, value);
    else stage.removeAttribute(name);
  }
}

/** Lays `draw(pen, width, height, photo)` over the picture; null for the picture alone. */
export function lay(draw) {
  overlay = draw;
  paint();
}

function paint() {
  const box = canvas.getBoundingClientRect();
  canvas.width = Math.max(1, Math.round(box.width * devicePixelRatio));
  canvas.height = Math.max(1, Math.round(box.height * devicePixelRatio));
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  if (photo) pen.drawImage(photo, 0, 0, canvas.width, canvas.height);
  overlay?.(pen, canvas.width, canvas.height, photo);
}

/** Where on the picture a pointer is, in its own pixels. */
export function pixelAt(event) {
  const box = canvas.getBoundingClientRect();
  const along = (at, start, length, pixels) => Math.min(pixels - 1, Math.max(0, Math.floor((at - start) / length * pixels)));
  return [along(event.clientX, box.left, box.width, size.width), along(event.clientY, box.top, box.height, size.height)];
}

new ResizeObserver(paint).observe(canvas);
