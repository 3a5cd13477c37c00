// Choosing a picture: dropped, pasted, from the disk, or one of the samples.

import { $, complain } from "./dom.js";
import { ask } from "./api.js";
import { readable } from "./convert.js";
import { state, tell } from "./state.js";

/** Counts choices: a picture that was converted too late does not take the place of a newer one. */
let choices = 0;

/** Makes a picture the one that the page is about. */
export async function choose(picture, name) {
  const choice = ++choices;
  complain("error", null);
  try {
    const [converted, itsName] = await readable(picture, name || picture.name || "photo.jpg");
    if (choice !== choices) return;
    state.picture = converted;
    state.name = itsName;
  } catch (error) {
    if (choice === choices) complain("error", error);
    return;
  }
  tell("picture");
}

async function chooseSample(button) {
  const [, file] = button.querySelector("img").getAttribute("src").match(/([^/]+)$/);
  try {
    const picture = await (await ask(`/page/${file}`)).blob();
    mark(button);
    await choose(picture, file);
  } catch (error) {
    complain("error", error);
  }
}

function mark(button) {
  for (const sample of $("samples").querySelectorAll("button")) sample.setAttribute("aria-pressed", sample === button);
}

function take(files) {
  if (!files?.length) return complain("error", new Error("That was no file. Drop a picture from your disk."));
  mark(null);
  choose(files[0]);
}

export function start() {
  const drop = $("drop");
  $("file").onchange = event => event.target.files.length && take(event.target.files);
  document.ondragover = event => { event.preventDefault(); drop.classList.add("over"); };
  document.ondragleave = event => event.relatedTarget ?? drop.classList.remove("over");
  document.ondrop = event => { event.preventDefault(); drop.classList.remove("over"); take(event.dataTransfer.files); };
  document.onpaste = event => event.clipboardData.files.length && take(event.clipboardData.files);
  const samples = [...$("samples").querySelectorAll("button")];
  for (const sample of samples) sample.onclick = () => chooseSample(sample);
  return chooseSample(samples[0]);
}
