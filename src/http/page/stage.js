// The picture of the first tab on its canvas, with what the model sees in it laid over.

import { Board } from "./board.js";
import { $ } from "./dom.js";
import { state } from "./state.js";

const board = new Board($("canvas"));
/** The picture's size in pixels, upright. */
export const { size } = board;
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
  $("frame").hidden = false;
  await board.show(picture);
  note(state.done);
  offerToScroll();
}

/** The server has read the picture, and says its size: that counts where the browser cannot read it. */
export function sized(width, height) {
  if (board.photo) return;
  note("Your browser cannot show this format. The server reads it: the outline is drawn without the picture.");
  if (width === size.width && height === size.height) return;
  board.resize(width, height);
  offerToScroll();
}

/** Nothing can be shown over the picture; where the browser cannot read it either, there is none. */
export function fail() {
  lay(null);
  if (!board.photo) $("frame").hidden = true;
}

function note(words) {
  $("picture-note").textContent = words;
  $("picture-note").hidden = !words;
}

/** What is scrolled can be scrolled with the keyboard, too. */
function offerToScroll() {
  const stage = $("stage"), scrolls = stage.scrollWidth > stage.clientWidth || stage.scrollHeight > stage.clientHeight;
  for (const [name, value] of [["tabindex", "0"], ["role", "region"], ["aria-label", "The picture, to scroll"]]) {
    if (scrolls) stage.setAttribute(name, value);
    else stage.removeAttribute(name);
  }
}

/** Lays `draw(pen, width, height, photo)` over the picture; null for the picture alone. */
export const lay = draw => board.lay(draw);

/** Where on the picture a pointer is, in its own pixels. */
export const pixelAt = event => board.pixelAt(event);
