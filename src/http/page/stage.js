// The picture on its canvas, with what the model sees in it laid over.

import { $ } from "./dom.js";

/** The picture as the browser reads it; null where it cannot. */
let photo = null;
/** Its size in pixels, upright: the server's word where the browser has none. */
export const size = { width: 0, height: 0 };
let overlay = null;
const canvas = $("canvas");

/** Shows another picture, without anything over it. */
export async function show(picture) {
  overlay = null;
  photo = await createImageBitmap(picture).catch(() => null);
  $("unseen").hidden = photo !== null;
  resize(photo?.width ?? 4, photo?.height ?? 3);
}

/** For a picture that the browser cannot read, its size as the server says. */
export function sized(width, height) {
  if (!photo && (width !== size.width || height !== size.height)) resize(width, height);
}

function resize(width, height) {
  Object.assign(size, { width, height });
  canvas.style.aspectRatio = `${width} / ${height}`;
  canvas.style.setProperty("--ratio", width / height);
  paint();
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
