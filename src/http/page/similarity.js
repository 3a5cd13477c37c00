// The view "Alike": a patch, chosen by pointer or arrow keys, and what in the picture is like it.

import { $, complain, debounced, say } from "./dom.js";
import { Latest, post } from "./api.js";
import { drawn, numbers } from "./heat.js";
import { lay, pixelAt, size } from "./stage.js";
import { path, state, tell } from "./state.js";

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
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
  try {
    const answer = await post(path("/similarity", wanted()), picture, latest.next());
    if (picture !== state.picture) return;
    const map = numbers(answer.maps[0].heatmap);
    grid = map;
    const [column, row] = cell(at);
    lay((...stage) => { drawn(map)(...stage); frame(column, row, ...stage); });
    const alike = map.values.filter(value => value > 0.6).length / map.values.length;
    $("alike-note").textContent = `Bright: like the patch in the frame (column ${column + 1} of ${grid.columns}, row ${row + 1} of ${grid.rows}). `
      + `${Math.round(100 * alike)} % of the picture is more than 0.6 alike.`;
    say($("alike-note").textContent);
    complain("view-error", null);
  } catch (error) {
    if (error.name !== "AbortError") lay(null);
    complain("view-error", error);
  }
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
export const forget = () => { point = null; };

export function start(isShown) {
  const canvas = $("canvas");
  const again = debounced(show, 40);
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
