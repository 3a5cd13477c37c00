// HEIC and AVIF, which phones store, to JPEG: the server does not read them, and many browsers do.

/** What a file is by its first bytes: "HEIC", "AVIF", or null for anything else. */
async function phoneFormat(picture) {
  const head = new TextDecoder("latin1").decode(await picture.slice(0, 64).arrayBuffer());
  if (head.slice(4, 8) !== "ftyp") return null;
  const brands = head.slice(8);
  return /avi[fs]/.test(brands) ? "AVIF" : /hei[cxms]|hev[cx]|mif1|msf1/.test(brands) ? "HEIC" : null;
}

/** The picture and its name; as a JPEG in sRGB, on white, where the server would not read it. Throws where the browser does not either. */
export async function readable(picture, name) {
  const format = await phoneFormat(picture);
  if (!format) return [picture, name];
  const photo = await createImageBitmap(picture).catch(() => null);
  if (!photo) {
    throw new Error(`Neither the server nor this browser reads ${format}. Export the picture as JPEG, or set the camera to “most compatible”.`);
  }
  const canvas = Object.assign(document.createElement("canvas"), { width: photo.width, height: photo.height });
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, photo.width, photo.height);
  pen.drawImage(photo, 0, 0);
  photo.close();
  const jpeg = await new Promise(resolve => canvas.toBlob(resolve, "image/jpeg", 0.95));
  if (!jpeg) throw new Error(`This ${format} is too large for the browser to convert. Export it as JPEG.`);
  return [jpeg, `${name.replace(/\.[^.]*$/, "")}.jpg`];
}
