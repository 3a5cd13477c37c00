// Choosing a picture: dropped, pasted, from the disk, or one of the samples.

import { $, complain } from "./dom.js";
import { ask } from "./api.js";
import { state, tell } from "./state.js";

/** Makes a picture the one that the page is about. */
export function choose(picture, name) {
  complain("error", null);
  state.picture = picture;
  state.name = name || picture.name || "photo.jpg";
  tell("picture");
}

async function chooseSample(button) {
  const [, file] = button.querySelector("img").getAttribute("src").match(/([^/]+)$/);
  try {
    const picture = await (await ask(`/page/${file}`)).blob();
    mark(button);
    choose(picture, file);
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
