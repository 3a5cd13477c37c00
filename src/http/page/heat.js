// Heat maps: one number per patch, as the server sends them, and as colours.

/** Stops of a scale from dark to bright, even in lightness (after matplotlib's "magma"). */
const SCALE = [[4, 3, 20], [43, 17, 93], [101, 26, 128], [158, 47, 127], [214, 69, 108], [247, 112, 92], [254, 167, 114], [254, 221, 153], [252, 253, 191]];

/** Numbers of a heat map: little-endian float16 in base64, times its scale. */
export function numbers({ size: [rows, columns], scale, data }) {
  const bytes = Uint8Array.from(atob(data), byte => byte.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const values = Float32Array.from({ length: rows * columns }, (_, at) => half(view.getUint16(2 * at, true)) * scale);
  return { rows, columns, values };
}

function half(bits) {
  const [sign, exponent, fraction] = [bits >> 15 ? -1 : 1, bits >> 10 & 31, bits & 1023];
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

/** A colour of the scale for a number from 0 to 1. */
export function colour(value) {
  const at = Math.min(Math.max(value, 0), 1) * (SCALE.length - 1);
  const below = Math.min(Math.floor(at), SCALE.length - 2);
  return SCALE[below].map((part, channel) => part + (SCALE[below + 1][channel] - part) * (at - below));
}

/** The map with one pixel per patch; numbers from `low` to `high` take the whole scale. */
export function pixels({ rows, columns, values }, low, high) {
  const canvas = new OffscreenCanvas(columns, rows);
  const image = new ImageData(columns, rows);
  values.forEach((value, at) => {
    const part = Math.min(Math.max((value - low) / (high - low || 1), 0), 1);
    image.data.set([...colour(part), 90 + 150 * part], 4 * at);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** Lays a map over the whole picture, its numbers spread over the scale. */
export function drawn(map) {
  const [low, high] = range(map.values);
  const cells = pixels(map, low, high);
  return (pen, width, height) => {
    pen.fillStyle = "rgb(8 8 14 / 35%)";
    pen.fillRect(0, 0, width, height);
    pen.imageSmoothingEnabled = true;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(cells, 0, 0, width, height);
  };
}

/** Where the scale begins and ends: a few extreme patches shall not make the rest dark. */
function range(values) {
  const sorted = Float32Array.from(values).sort();
  const at = share => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
  return [at(0.02), at(0.995)];
}
