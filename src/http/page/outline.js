// The view "Outline": masks of objects over the picture, with method, threshold and borders live.

import { $, debounced, percent, say } from "./dom.js";
import { Latest, post } from "./api.js";
import { lay, size, sized } from "./stage.js";
import { path, state, tell } from "./state.js";

/** What the threshold of each method means: words, least, largest and first value; and what its mask shows. */
const METHODS = {
  background: ["Alike is background above", -0.5, 0.95, 0.3, "what does not resemble the patch that gets least attention"],
  attention: ["Share of attention kept", 0.05, 0.95, 0.6, "where the network looks"],
  ncut: ["Alike above", -0.5, 0.95, 0.2, "one side of the cheapest cut through the picture"],
  lost: ["Like the seed above", -0.5, 0.95, 0, "what grows from the rarest patch"],
  pca: ["Cut at (deviations)", -2, 3, 0, "one side of the direction in which patches differ most"],
  saliency: ["Times Otsu's cut", 0.2, 2, 1, "what lies towards the middle and does not resemble the border"],
};
/** Colours of contours, the first object's first. */
const CONTOURS = ["#5ef0d0", "#ffd166", "#ff8fab", "#9db4ff", "#c8f169"];
/** Below this score an object hardly stands out. */
const WEAK = 0.1;

const latest = new Latest();

/** The options of `/segment` as they are set; without a method the model's folder says how its masks are made best. */
export const wanted = () => ({
  model: state.model,
  method: $("method").value || null,
  threshold: $("method").value ? Number($("threshold").value) : null,
  max_objects: Number($("objects").value),
  refine: $("refine").checked ? "guided" : null,
});

export async function show() {
  const { picture } = state;
  const { results: [found] } = await post(path("/segment", wanted()), picture, latest.next());
  const masks = await Promise.all(found.masks.map(mask => stencil(mask.png)));
  if (picture !== state.picture) return;
  sized(found.width, found.height);
  lay(masks.length ? (...stage) => draw(masks, ...stage) : null);
  describe(found.masks, found.method);
}

/** Takes away what was said of another picture. */
export function forget() {
  for (const note of ["outline-note", "method-note"]) $(note).textContent = "";
}

function describe(masks, method) {
  const note = $("outline-note");
  if (!masks.length) {
    note.textContent = "Nothing stands out here. Try another threshold or method.";
    $("method-note").textContent = "";
  } else {
    const covered = masks.reduce((sum, mask) => sum + mask.area, 0) / (size.width * size.height);
    const best = Math.max(...masks.map(mask => mask.score));
    note.textContent = `Bright: ${masks.length > 1 ? `${masks.length} objects that stand` : "what stands"} out, ${percent(covered)} of the picture`
      + (best < WEAK ? ". It hardly stands out, so the outline may be wrong." : ".");
    $("method-note").textContent = `The method shows ${METHODS[method][4]}. Score ${best.toFixed(2)}: how far that stands out.`;
  }
  say(note.textContent);
}

/** A mask as a canvas that is opaque inside. */
async function stencil(png) {
  const bytes = Uint8Array.from(atob(png), byte => byte.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const pen = canvas.getContext("2d");
  pen.drawImage(bitmap, 0, 0);
  const pixels = pen.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < pixels.data.length; at += 4) pixels.data[at + 3] = pixels.data[at];
  pen.putImageData(pixels, 0, 0);
  return canvas;
}

/** Darkens what is outside, and draws a line around each object. */
function draw(masks, pen, width, height, photo) {
  const line = Math.max(1.5, width / 320);
  pen.fillStyle = "rgb(10 11 16 / 68%)";
  pen.fillRect(0, 0, width, height);
  masks.forEach((mask, at) => {
    pen.drawImage(contour(mask, width, height, line, CONTOURS[at % CONTOURS.length]), 0, 0);
    pen.drawImage(cut(mask, width, height, photo), 0, 0);
  });
}

function layer(width, height, draw) {
  const canvas = new OffscreenCanvas(width, height);
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  draw(pen);
  return canvas;
}

/** The picture inside a mask; a plain light one where the browser cannot read it. */
function cut(mask, width, height, photo) {
  return layer(width, height, pen => {
    pen.drawImage(mask, 0, 0, width, height);
    pen.globalCompositeOperation = "source-in";
    pen.fillStyle = "#d8d8d4";
    if (photo) pen.drawImage(photo, 0, 0, width, height);
    else pen.fillRect(0, 0, width, height);
  });
}

/** The mask, a line's width larger on all sides. */
function contour(mask, width, height, line, colour) {
  return layer(width, height, pen => {
    for (let step = 0; step < 16; step++) {
      const angle = step / 8 * Math.PI;
      pen.drawImage(mask, line * Math.cos(angle), line * Math.sin(angle), width, height);
    }
    pen.globalCompositeOperation = "source-in";
    pen.fillStyle = colour;
    pen.fillRect(0, 0, width, height);
  });
}

/** Sets words and limits of the threshold for the chosen method. */
function choose() {
  const method = $("method").value;
  $("threshold-row").hidden = !method;
  if (!method) return;
  const [meaning, min, max, value] = METHODS[method];
  $("meaning").textContent = meaning;
  Object.assign($("threshold"), { min, max, value });
  $("kept").textContent = value;
}

/** `look` shows the view anew. */
export function start(look) {
  const again = debounced(() => state.picture && look(), 80);
  const changed = () => { $("kept").textContent = $("threshold").value; tell("request"); again(); };
  $("method").onchange = () => { choose(); changed(); };
  $("threshold").oninput = changed;
  $("refine").onchange = changed;
  $("objects").onchange = changed;
  choose();
}
