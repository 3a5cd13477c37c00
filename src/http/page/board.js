// A picture on a canvas, with something laid over it.

/** Widest and tallest shape that is shown as it is; what is more extreme is drawn out, or it would be a line. */
const MOST_EXTREME = 20;

export class Board {
  #canvas;
  #overlay = null;
  /** Counts pictures: one that was read too late does not take the place of a newer one. */
  #pictures = 0;
  /** The picture as the browser reads it; null where it cannot, or where there is none. */
  photo = null;
  /** Its size in pixels, upright: the server's word where the browser has none. */
  size = { width: 0, height: 0 };

  constructor(canvas) {
    this.#canvas = canvas;
    new ResizeObserver(() => this.#paint()).observe(canvas);
  }

  /** Shows another picture, without anything over it. */
  async show(picture) {
    const number = ++this.#pictures;
    this.#overlay = null;
    const photo = await createImageBitmap(picture).catch(() => null);
    if (number !== this.#pictures) return;
    this.photo = photo;
    this.resize(photo?.width ?? 4, photo?.height ?? 3);
  }

  /** Takes the picture away. */
  clear() {
    this.#pictures++;
    this.photo = this.#overlay = null;
    this.#paint();
  }

  /** Gives the canvas the shape of a picture of this size. */
  resize(width, height) {
    Object.assign(this.size, { width, height });
    const ratio = Math.min(MOST_EXTREME, Math.max(1 / MOST_EXTREME, width / height));
    this.#canvas.style.aspectRatio = ratio === width / height ? `${width} / ${height}` : ratio;
    this.#canvas.style.setProperty("--ratio", ratio);
    this.#paint();
  }

  /** Lays `draw(pen, width, height, photo)` over the picture; null for the picture alone. */
  lay(draw) {
    this.#overlay = draw;
    this.#paint();
  }

  #paint() {
    const canvas = this.#canvas, box = canvas.getBoundingClientRect();
    // Of a tab that is not shown: it is painted once it is.
    if (!box.width) return;
    canvas.width = Math.max(1, Math.round(box.width * devicePixelRatio));
    canvas.height = Math.max(1, Math.round(box.height * devicePixelRatio));
    const pen = canvas.getContext("2d");
    pen.imageSmoothingQuality = "high";
    if (this.photo) pen.drawImage(this.photo, 0, 0, canvas.width, canvas.height);
    this.#overlay?.(pen, canvas.width, canvas.height, this.photo);
  }

  /** Where on the picture a pointer is, in its own pixels. */
  pixelAt(event) {
    const box = this.#canvas.getBoundingClientRect();
    const along = (at, start, length, pixels) => Math.min(pixels - 1, Math.max(0, Math.floor((at - start) / length * pixels)));
    return [along(event.clientX, box.left, box.width, this.size.width), along(event.clientY, box.top, box.height, this.size.height)];
  }
}
