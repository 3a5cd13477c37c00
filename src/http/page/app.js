// The page: puts its parts together. Each part has a file of its own.

import * as attention from "./attention.js";
import * as code from "./code.js";
import * as map from "./map.js";
import * as outline from "./outline.js";
import * as picture from "./picture.js";
import * as similarity from "./similarity.js";
import * as stage from "./stage.js";
import * as vote from "./vote.js";
import { askForKey, json, key } from "./api.js";
import { $, complain, element } from "./dom.js";
import { on, state, tell } from "./state.js";

const VIEWS = { outline, attention, similarity };
const CANVAS = {
  outline: "The picture; what stands out is light, the rest is dark.",
  attention: "The picture under a heat map of attention.",
  similarity: "The picture under a heat map of what is like the framed patch. Arrow keys move the frame.",
};
/** Which request is worth copying in each view. */
const CODE = { outline: "segment", attention: "attention", similarity: "similarity" };

const view = () => document.querySelector("input[name=view]:checked").value;

function switchView() {
  const name = view();
  for (const other of Object.keys(VIEWS)) $(`${other}-panel`).hidden = other !== name;
  const canvas = $("canvas");
  canvas.setAttribute("aria-label", CANVAS[name]);
  canvas.setAttribute("role", name === "similarity" ? "application" : "img");
  canvas.tabIndex = name === "similarity" ? 0 : -1;
  canvas.classList.toggle("pick", name === "similarity");
  $("code-what").value = CODE[name];
  code.show();
  if (state.picture) VIEWS[name].show();
}

async function showPicture() {
  similarity.forget();
  for (const note of ["outline-note", "alike-note"]) $(note).textContent = "Looking…";
  $("canvas").setAttribute("aria-busy", "true");
  await stage.show(state.picture);
  await Promise.all([VIEWS[view()].show(), vote.show()]);
  $("canvas").removeAttribute("aria-busy");
}

/** The server's name and models, in the head of the page. */
function introduce(models) {
  const [first] = models;
  $("server").textContent = models.length === 1 ? `${first.id}: ${first.architecture}, ${first.precision} on ${first.device}` : `${models.length} models`;
  if (models.length < 2) return;
  $("model").replaceChildren(...models.map(({ id }) => element("option", { value: id, textContent: id })));
  $("model-row").hidden = false;
  $("model").onchange = () => {
    state.model = $("model").value;
    tell("model");
    if (state.picture) VIEWS[view()].show();
  };
}

/** Light or dark: the system's choice until the button is used. */
function theme() {
  const root = document.documentElement, kept = localStorage.getItem("dino-theme");
  const isDark = () => (root.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  if (kept) root.style.colorScheme = kept;
  $("theme").onclick = () => {
    root.style.colorScheme = isDark() ? "light" : "dark";
    localStorage.setItem("dino-theme", root.style.colorScheme);
    tell("theme");
  };
}

theme();
$("key-button").onclick = async () => { if (await askForKey()) location.reload(); };
outline.start();
similarity.start(() => view() === "similarity");
vote.start();
map.start();
code.start({ vote: vote.wanted, outline: outline.wanted, attention: attention.wanted, similarity: similarity.wanted });
for (const choice of document.querySelectorAll("input[name=view]")) choice.onchange = switchView;
on("picture", showPicture);
switchView();

try {
  const { api_keys: needsKey } = await json("/healthz");
  $("key-button").hidden = !needsKey;
  if (needsKey && !key() && !await askForKey({})) throw new Error("This server asks for a key. Enter it with the button “Key”, above.");
  introduce(await vote.refresh());
  await picture.start();
} catch (error) {
  complain("error", error);
}
