// The view "Alike": a patch, chosen by pointer or arrow keys, and what in the picture is like it.

import { $, debounced, percent, say } from "./dom.js";
import { Latest, post } from "./api.js";
import { drawn, numbers } from "./heat.js";
import { lay, pixelAt, size } from "./stage.js";
import { path, state, tell } from "./state.js";

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
/** Above this similarity a patch counts as like the chosen one. */
const ALIKE = 0.6;
const latest = new Latest();
/** The chosen point in pixels of the picture; null before one is chosen. */
let point = null;
/** Patches of the newest answer; until then a guess. */
let grid = { rows: 30, columns: 40 };

/** The middle of the picture, slightly above: where things mostly are. */
const middle = () => [Math.floor(size.width / 2), Math.floor(size.height * 0.45)];

export const wanted = () => ({ model: state.model, points: JSON.stringify([point ?? middle()]), format: "heatmap" });

export async function show() {
  const { picture } = state;
  const at = point ??= middle();
  const answer = await post(path("/similarity", wanted()), picture, latest.next());
  if (picture !== state.picture) return;
  const map = numbers(answer.maps[0].heatmap);
  grid = map;
  const [column, row] = cell(at);
  lay((...stage) => { drawn(map)(...stage); frame(column, row, ...stage); });
  const alike = percent(map.values.filter(value => value > ALIKE).length / map.values.length);
  $("alike-note").textContent = `Click anywhere in the picture: what looks like the framed spot turns bright. Here it is ${alike} of the picture.`;
  const place = ([x, y]) => `${percent(x / size.width)} from the left, ${percent(y / size.height)} from the top`;
  say(`Frame ${place(at)}; ${alike} of the picture looks like it.`);
}

const cell = ([x, y]) => [Math.floor(x / size.width * grid.columns), Math.floor(y / size.height * grid.rows)];

/** A frame around the chosen patch. */
function frame(column, row, pen, width, height) {
  const [w, h] = [width / grid.columns, height / grid.rows];
  const room = Math.max(0, (14 * devicePixelRatio - Math.max(w, h)) / 2);
  const box = [column * w - room, row * h - room, w + 2 * room, h + 2 * room];
  for (const [colour, line] of [["#000", 4], ["#fff", 2]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = line * devicePixelRatio;
    pen.strokeRect(...box);
  }
}

/** Another picture has other patches. */
export function forget() {
  point = null;
  $("alike-note").textContent = "Click anywhere in the picture: what looks like that spot turns bright.";
}

/** `look` shows the view anew. */
export function start(isShown, look) {
  const canvas = $("canvas");
  const again = debounced(look, 40);
  const move = to => { point = to; tell("request"); again(); };
  canvas.addEventListener("pointerdown", event => isShown() && state.picture && move(pixelAt(event)));
  canvas.addEventListener("keydown", event => {
    const step = STEPS[event.key];
    if (!step || !isShown() || !state.picture) return;
    event.preventDefault();
    const [column, row] = cell(point ?? middle());
    const centre = (at, by, count, pixels) =>
      Math.min(pixels - 1, Math.floor((Math.min(count - 1, Math.max(0, at + by)) + 0.5) / count * pixels));
    move([centre(column, step[0], grid.columns, size.width), centre(row, step[1], grid.rows, size.height)]);
  });
}
