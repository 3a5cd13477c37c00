// Choosing a picture: dropped, pasted, from the disk, a stored one, or one of the samples.

import { $, complain } from "./dom.js";
import { ask } from "./api.js";
import { prepared } from "./convert.js";
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
  const [, file] = button.querySelector("img").getAttribute("src").match(/([^/]+)$/);
  return choose(async () => (await ask(`/page/${file}`)).blob(), file, button);
}

/** Asks about the stored picture of an item. */
export function chooseItem(collection, id) {
  $("stage-card").scrollIntoView({ behavior: "smooth" });
  return choose(async () => (await ask(imagePath(collection, id))).blob(), id.split("/").pop());
}

function take(files) {
  if (!files?.length) return complain("error", new Error("That was no file. Drop a picture from your disk."));
  choose(async () => files[0], files[0].name || "photo.jpg");
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
