// What is sent of a picture: HEIC and AVIF, which phones store and the server does not read, as JPEG, and large pictures smaller.

/** Longer side in pixels of what is sent of a large picture: the server looks at less. */
const LONGEST = 2048;
/** Files of fewer bytes are sent as they are. */
const SMALL = 1 << 20;
/** Files of fewer bytes are sent as they are where their picture has few pixels. */
const LARGE = 4 << 20;

/** What a file is by its first bytes: "HEIC", "AVIF", or null for anything else. */
async function phoneFormat(picture) {
  const head = new TextDecoder("latin1").decode(await picture.slice(0, 64).arrayBuffer());
  if (head.slice(4, 8) !== "ftyp") return null;
  const brands = head.slice(8);
  return /avi[fs]/.test(brands) ? "AVIF" : /hei[cxms]|hev[cx]|mif1|msf1/.test(brands) ? "HEIC" : null;
}

/**
 * The picture to send, its name, and what was done to it in words (empty where it is the file as it came). Throws where neither the
 * server nor the browser reads it.
 */
export async function prepared(picture, name) {
  const format = await phoneFormat(picture);
  if (!format && picture.size < SMALL) return { picture, name, done: "" };
  const photo = await createImageBitmap(picture).catch(() => null);
  if (!photo) {
    if (!format) return { picture, name, done: "" };
    throw new Error(`Neither the server nor this browser reads ${format}. Export the picture as JPEG, or set the camera to “most compatible”.`);
  }
  const { width, height } = photo;
  const scale = Math.min(1, LONGEST / Math.max(width, height));
  if (!format && scale === 1 && picture.size < LARGE) {
    photo.close();
    return { picture, name, done: "" };
  }
  const jpeg = await drawn(photo, scale);
  photo.close();
  if (!jpeg) throw new Error("This picture is too large for the browser to make smaller. Save it with fewer pixels.");
  const smaller = `${megabytes(picture.size)} made ${megabytes(jpeg.size)}`;
  return {
    picture: jpeg,
    // The file of that name is what requests to copy would send: only the page makes JPEG of it.
    name: format ? `${name.replace(/\.[^.]*$/, "")}.jpg` : name,
    done: scale < 1 ? `Sent smaller than it is (${width} × ${height} pixels, ${smaller}): the model looks at less.`
      : format ? `Sent as JPEG: the server does not read ${format}.` : `Sent as JPEG (${smaller}).`,
  };
}

/** A picture as a JPEG in sRGB, on white. */
function drawn(photo, scale) {
  const side = length => Math.max(1, Math.round(length * scale));
  const canvas = Object.assign(document.createElement("canvas"), { width: side(photo.width), height: side(photo.height) });
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(photo, 0, 0, canvas.width, canvas.height);
  return new Promise(resolve => canvas.toBlob(resolve, "image/jpeg", 0.95));
}

const megabytes = bytes => `${(bytes / 1e6).toFixed(1)} MB`;
