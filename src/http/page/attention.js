// The view "Attention": what each head of the last block looks at.

import { $, element, say } from "./dom.js";
import { Latest, post } from "./api.js";
import { drawn, numbers } from "./heat.js";
import { lay, size, sized } from "./stage.js";
import { path, state } from "./state.js";

const latest = new Latest();
/** Number of the chosen head; -1 for the mean of all. */
let chosen = -1;

export const wanted = () => ({ model: state.model, head: "all", format: "heatmap" });

export async function show() {
  const { picture } = state;
  const { results: [found] } = await post(path("/segment", wanted()), picture, latest.next());
  if (picture !== state.picture) return;
  sized(found.width, found.height);
  const heads = found.heads.map(numbers);
  offer([mean(heads), ...heads]);
}

/** Takes away what was shown of another picture. */
export const forget = () => $("heads").replaceChildren();

function mean(heads) {
  const { rows, columns, values } = heads[0];
  return { rows, columns, values: values.map((_, at) => heads.reduce((sum, head) => sum + head.values[at], 0) / heads.length) };
}

/** One tile for each map; the chosen one lies over the picture. */
function offer(maps) {
  const tiles = maps.map((map, at) => {
    const name = at === 0 ? "Mean" : `Head ${at}`;
    const tile = element("canvas", { width: 96, height: Math.min(160, Math.max(24, Math.round(96 * size.height / size.width))) });
    const pen = tile.getContext("2d");
    pen.fillRect(0, 0, tile.width, tile.height);
    drawn(map)(pen, tile.width, tile.height);
    const button = element("button", { type: "button", className: "tile" }, tile, element("span", { textContent: name }));
    button.onclick = () => pick(at - 1, map, name);
    return button;
  });
  $("heads").replaceChildren(...tiles);
  const first = Math.min(chosen, maps.length - 2);
  pick(first, maps[first + 1], first < 0 ? "Mean" : `Head ${first + 1}`);
}

function pick(head, map, name) {
  chosen = head;
  [...$("heads").children].forEach((tile, at) => tile.setAttribute("aria-pressed", at - 1 === head));
  lay(drawn(map));
  say(`${name === "Mean" ? "Mean attention of all heads" : `Attention of ${name.toLowerCase()}`} over the picture.`);
}
