// The requests of this page, to copy: for a shell, and for Python.

import { $ } from "./dom.js";
import { address, key } from "./api.js";
import { on, path, state } from "./state.js";

let wanted = {};

const quoted = text => `'${text.replaceAll("'", `'\\''`)}'`;
const python = text => JSON.stringify(text);

/** Route, options, and what Python prints of the answer. */
function request() {
  const collection = encodeURIComponent(state.collection ?? "default");
  const label = $("label").value.trim() || "my label";
  return {
    classify: ["/classify", wanted.vote(), `answer["results"][0]["classes"][:3]`],
    segment: ["/segment", wanted.outline(), `[mask["bbox"] for mask in answer["results"][0]["masks"]]`],
    attention: ["/segment", wanted.attention(), `len(answer["results"][0]["heads"]), "heads"`],
    similarity: ["/similarity", wanted.similarity(), `answer["maps"][0]["heatmap"]["size"]`],
    // A comma would part labels; a list keeps it.
    add: [`/collections/${collection}/items`, { labels: label.includes(",") ? JSON.stringify([label]) : label }, `answer["ids"]`],
    embed: ["/embed", { model: state.model }, `answer["dim"], answer["embeddings"][0][:4]`],
  }[$("code-what").value];
}

function curl(url) {
  const authorization = key() ? ` \\\n  -H "Authorization: Bearer $DINO_KEY"` : "";
  return `curl --data-binary ${quoted(`@${state.name}`)} \\\n  -H 'Content-Type: application/octet-stream'${authorization} \\\n  ${quoted(url)}`;
}

function inPython(route, options, shown) {
  const given = Object.entries(options).filter(([, value]) => value !== null && value !== undefined);
  const parameters = given.length ? `\n    params={${given.map(([name, value]) => `${python(name)}: ${typeof value === "number" ? value : python(value)}`).join(", ")}},` : "";
  const authorization = key() ? `, "Authorization": "Bearer " + os.environ["DINO_KEY"]` : "";
  return `${key() ? "import os\n" : ""}import requests

response = requests.post(
    ${python(address(route))},${parameters}
    data=open(${python(state.name)}, "rb").read(),
    headers={"Content-Type": "application/octet-stream"${authorization}},
)
response.raise_for_status()
answer = response.json()
print(${shown})`;
}

export function show() {
  const [route, options, shown] = request();
  const isCurl = document.querySelector("input[name=language]:checked").value === "curl";
  $("code").textContent = isCurl ? curl(address(path(route, options))) : inPython(route, options, shown);
}

async function copy() {
  const button = $("copy");
  try {
    await navigator.clipboard.writeText($("code").textContent);
  } catch {
    // Browsers give the clipboard to secure pages alone; the older way works on the others.
    getSelection().selectAllChildren($("code"));
    if (!document.execCommand("copy")) return;
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

/** `requests`: the options of each view, by its name. */
export function start(requests) {
  wanted = requests;
  $("code-what").onchange = show;
  $("label").addEventListener("input", show);
  for (const language of document.querySelectorAll("input[name=language]")) language.onchange = show;
  for (const change of ["picture", "voters", "request", "model", "answer"]) on(change, show);
  $("copy").onclick = copy;
  show();
}
