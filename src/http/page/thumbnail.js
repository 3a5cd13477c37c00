// Stored pictures of items. They are fetched rather than linked: an `<img>` could not send a key.

import { ask } from "./api.js";
import { element, readable } from "./dom.js";

/** Addresses of the pictures that were fetched, by path; the oldest go. */
const fetched = new Map();
const MOST = 300;

export const imagePath = (collection, id) => `/collections/${encodeURIComponent(collection)}/items/${encodeURIComponent(id)}/image`;

/** The item's picture as an address for an `<img>`. */
function address(path) {
  if (!fetched.has(path)) {
    const loading = ask(path).then(response => response.blob()).then(blob => URL.createObjectURL(blob));
    loading.catch(() => fetched.delete(path));
    fetched.set(path, loading);
    if (fetched.size > MOST) {
      const [oldest, old] = fetched.entries().next().value;
      fetched.delete(oldest);
      old.then(URL.revokeObjectURL, () => {});
    }
  }
  return fetched.get(path);
}

/** An item's labels, or its id where it has none. */
export const named = ({ id, labels }) => labels.length ? readable(labels.join(", ")) : id;

/** An item's picture, or, for items that have none, a tile with its first letter. */
export function thumbnail(collection, { id, labels, has_image: hasImage }) {
  const name = labels[0] ?? id;
  const blank = () => element("span", { className: "blank", textContent: name.slice(0, 1), ariaHidden: "true" });
  if (!hasImage) return blank();
  const image = element("img", { alt: "", decoding: "async" });
  address(imagePath(collection, id)).then(url => { image.src = url; }, () => image.replaceWith(blank()));
  return image;
}
