// The page: puts its parts together. Each part has a file of its own.

import * as attention from "./attention.js";
import * as code from "./code.js";
import * as map from "./map.js";
import * as odd from "./odd.js";
import * as outline from "./outline.js";
import * as picture from "./picture.js";
import * as similarity from "./similarity.js";
import * as spot from "./spot.js";
import * as stage from "./stage.js";
import * as tabs from "./tabs.js";
import * as vote from "./vote.js";
import { askForKey, json, key } from "./api.js";
import { $, complain, element } from "./dom.js";
import { on, state, tell } from "./state.js";

const VIEWS = { outline, attention, similarity };
const CANVAS = {
  outline: "The picture; what stands out is light, the rest is dark.",
  attention: "The picture under a heat map of attention.",
  similarity: "The picture under a heat map of what looks like the framed spot. Arrow keys move the frame.",
};
/** Which request is worth copying in each view. */
const CODE = { outline: "segment", attention: "attention", similarity: "similarity" };
/** Hash of the file that the weights of the demo model come from (`models/demo/manifest.json`). */
const DEMO = "c462c5d70a0be25629d3f1b7e70d6035e8fc2f6d409495cdf3804f8cac0032f0";
/** Files of more bytes are sent to the vote once the view was answered: what one refuses the other would, too. */
const LARGE = 8 << 20;

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
  if (state.picture) showView();
}

/** Shows the chosen view of the picture; false where the server did not answer it. */
async function showView() {
  const looked = stage.showBusy("Looking…");
  try {
    await VIEWS[view()].show();
    complain("view-error", null);
    return true;
  } catch (error) {
    if (error.name === "AbortError") return true;
    // What was said of the picture before does not stay under an error.
    stage.fail();
    VIEWS[view()].forget();
    complain("view-error", error, showPicture);
    return false;
  } finally {
    looked();
  }
}

async function showPicture() {
  for (const shown of Object.values(VIEWS)) shown.forget();
  const canvas = $("canvas"), { picture: shown } = state;
  canvas.setAttribute("aria-busy", "true");
  vote.wait();
  await stage.show(shown);
  if (shown.size > LARGE) {
    if (await showView()) await vote.show();
    else vote.clear();
  } else {
    await Promise.all([showView(), vote.show()]);
  }
  if (shown === state.picture) canvas.removeAttribute("aria-busy");
}

/** Looks at the first sample once the tab is shown. */
async function begin() {
  if (tabs.shown() === "look" && !state.picture) await picture.begin();
}

/** The server's name and models, in the head of the page. */
function introduce(models) {
  const [first] = models;
  $("server").textContent = models.length === 1 ? `${first.id}: ${first.architecture}, ${first.precision} on ${first.device}` : `${models.length} models`;
  $("demo-note").hidden = !(models.length === 1 && first.source_sha256 === DEMO);
  if (models.length < 2) return;
  $("model").replaceChildren(...models.map(({ id }) => element("option", { value: id, textContent: id })));
  $("model-row").hidden = false;
  $("model").onchange = () => {
    state.model = $("model").value;
    tell("model");
    if (state.picture) showView();
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
outline.start(showView);
similarity.start(() => view() === "similarity", showView);
vote.start();
map.start();
code.start({ vote: vote.wanted, outline: outline.wanted, attention: attention.wanted, similarity: similarity.wanted });
for (const choice of document.querySelectorAll("input[name=view]")) choice.onchange = switchView;
on("picture", showPicture);
switchView();
picture.start();
odd.start();
spot.start();
tabs.start({ look: picture.take, odd: odd.receive, spot: spot.receive });

try {
  const { api_keys: needsKey } = await json("/healthz");
  $("key-button").hidden = !needsKey;
  if (needsKey && !key() && !await askForKey({})) throw new Error("This server asks for a key. Enter it with the button “Key”, above.");
  introduce(await vote.refresh());
  on("tab", begin);
  await begin();
} catch (error) {
  complain("page-error", error, () => location.reload());
}
