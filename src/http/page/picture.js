// Choosing a picture: dropped, pasted, from the disk, a stored one, or one of the samples.

import { $, complain } from "./dom.js";
import { ask } from "./api.js";
import { prepared } from "./convert.js";
import { NO_FILE, sampleOf } from "./given.js";
import { showBusy } from "./stage.js";
import { state, tell } from "./state.js";
import { imagePath } from "./thumbnail.js";

/** Counts choices: a picture that was prepared too late does not take the place of a newer one. */
let choices = 0;

/** Makes a picture the one that the page is about; `find` answers it. `sample` is the button of a sample. */
async function choose(find, name, sample = null) {
  const choice = ++choices;
  complain("error", null);
  const looked = showBusy("Reading the picture…");
  try {
    const ready = await prepared(await find(), name);
    if (choice !== choices) return;
    Object.assign(state, ready);
    for (const other of $("samples").querySelectorAll("button")) other.setAttribute("aria-pressed", other === sample);
  } catch (error) {
    if (choice === choices) complain("error", error, () => choose(find, name, sample));
    return;
  } finally {
    looked();
  }
  tell("picture");
}

function chooseSample(button) {
  const { name, find } = sampleOf(button.querySelector("img"));
  return choose(find, name, button);
}

/** Asks about the stored picture of an item. */
export function chooseItem(collection, id) {
  $("stage-card").scrollIntoView({ behavior: "smooth" });
  return choose(async () => (await ask(imagePath(collection, id))).blob(), id.split("/").pop());
}

/** Takes files that were dropped, pasted or chosen. */
export function take(files) {
  if (!files.length) return complain("error", new Error(NO_FILE));
  choose(async () => files[0], files[0].name || "photo.jpg");
}

/** Takes the first sample. */
export const begin = () => chooseSample($("samples").querySelector("button"));

export function start() {
  $("file").onchange = event => event.target.files.length && take(event.target.files);
  for (const sample of $("samples").querySelectorAll("button")) sample.onclick = () => chooseSample(sample);
}
