// The tabs, each with its own pictures. Files that are dropped or pasted go to the one that is shown.

import { $ } from "./dom.js";
import { tell } from "./state.js";

const NAMES = ["look", "odd", "spot"];
const STEPS = { ArrowLeft: -1, ArrowRight: 1 };

/** The name of the tab that is shown. */
export const shown = () => NAMES.find(name => !$(name).hidden);

function show(name) {
  for (const other of NAMES) {
    const tab = $(`tab-${other}`), isShown = other === name;
    $(other).hidden = !isShown;
    tab.setAttribute("aria-selected", isShown);
    tab.tabIndex = isShown ? 0 : -1;
  }
  $("skip").href = `#${name}`;
  tell("tab", name);
}

/** Shows the tab that the address names. */
function follow() {
  const name = location.hash.slice(1);
  show(NAMES.includes(name) ? name : NAMES[0]);
}

/** `takers`: what is done with files that are dropped or pasted, by the tab's name; it also learns on which element. */
export function start(takers) {
  const take = (files, target) => takers[shown()]([...files], target);
  for (const [at, name] of NAMES.entries()) {
    const tab = $(`tab-${name}`);
    tab.onclick = () => {
      if (name === shown()) return;
      // The address can be sent to others; going back leads to the tab before.
      history.pushState(null, "", `#${name}`);
      show(name);
    };
    tab.onkeydown = event => {
      // Alt with an arrow goes back or forward in the browser.
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      const to = event.key === "Home" ? 0 : event.key === "End" ? NAMES.length - 1 : (at + STEPS[event.key] + NAMES.length) % NAMES.length;
      if (Number.isNaN(to)) return;
      event.preventDefault();
      $(`tab-${NAMES[to]}`).focus();
      $(`tab-${NAMES[to]}`).click();
    };
  }
  const over = is => document.body.classList.toggle("over", is);
  document.ondragover = event => { event.preventDefault(); over(true); };
  document.ondragleave = event => event.relatedTarget ?? over(false);
  document.ondrop = event => { event.preventDefault(); over(false); take(event.dataTransfer.files, event.target); };
  document.onpaste = event => event.clipboardData.files.length && take(event.clipboardData.files, event.target);
  addEventListener("popstate", follow);
  follow();
}
