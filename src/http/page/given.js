// Pictures that a visitor gives: files, and samples of the page.

import { ask } from "./api.js";
import { prepared } from "./convert.js";

export const NO_FILE = "That was no file. Drop a picture from your disk.";

/** The sample that an `<img>` of the page shows: its name, and a function that answers its file. */
export function sampleOf(image) {
  const [, name] = image.getAttribute("src").match(/([^/]+)$/);
  return { name, find: async () => (await ask(`/page/${name}`)).blob() };
}

/** A file as it is sent: `{ picture, name, done }`, as of `prepared`. */
export const ofFile = file => prepared(file, file.name || "photo.jpg");

/** An error in words that say what a visitor can do. */
export function explained(error) {
  const why = {
    key_read_only: "This key may only read. The good pictures are kept on the server while others are compared with them: enter a key that may write, with the button “Key” above.",
    model_lacks_output: "This model gives no patches that could be compared: choose or serve another one.",
  }[error.code];
  return why ? Object.assign(new Error(why), { code: error.code }) : error;
}

/** A sample as it is sent. */
export async function ofSample(image) {
  const { name, find } = sampleOf(image);
  return { picture: await find(), name, done: "" };
}
