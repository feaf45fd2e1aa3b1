// The whole picture, small, with a frame around what is seen. Dragging it moves the view.

import { h } from "./dom.js";

/** The longer side, and the share of the view's width that it may take. */
const SIDE = 168;
const SHARE = 0.28;
/** The small picture is renewed no more often than this. */
const RENEW_MS = 1500;

export class Navigator {
  constructor(zoom) {
    this.zoom = zoom;
    this.image = h("canvas", {});
    this.closed = false;
    this.shown = "";
    this.busy = false;
    this.timer = null;
    this.frame = h("div", { class: "seen" });
    this.element = h("div", { class: "navigator", "aria-hidden": "true" }, this.image, this.frame);
    this.element.addEventListener("pointerdown", (event) => {
      this.element.setPointerCapture(event.pointerId);
      this.go(event);
    });
    this.element.addEventListener("pointermove", (event) => event.buttons && this.go(event));
  }

  go(event) {
    const box = this.element.getBoundingClientRect();
    this.zoom.centre((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  }

  /** The view moved or the picture changed. */
  update() {
    const { left, top, scale, width, height } = this.zoom.frame;
    const [across, down] = [width * scale, height * scale];
    const fit = Math.min(SIDE, this.zoom.place.clientWidth * SHARE) / Math.max(width, height);
    Object.assign(this.element.style, { width: `${width * fit}px`, height: `${height * fit}px` });
    const clip = (value) => Math.min(Math.max(value, 0), 1);
    const { clientWidth, clientHeight } = this.zoom.place;
    const [l, r] = [clip(-left / across), clip((clientWidth - left) / across)];
    const [t, b] = [clip(-top / down), clip((clientHeight - top) / down)];
    const all = Math.max(l, t, 1 - r, 1 - b) < 0.005;
    Object.assign(this.frame.style, {
      left: `${l * 100}%`,
      top: `${t * 100}%`,
      width: `${(r - l) * 100}%`,
      height: `${(b - t) * 100}%`,
    });
    this.frame.hidden = all;
    // Where the whole picture is seen a small one only covers some of it.
    this.element.classList.toggle("idle", all);
    this.renew();
  }

  renew() {
    const tiles = this.zoom.tiles;
    const small = tiles.url(tiles.smallest, 0, 0);
    const url = tiles.fresh(small);
    if (tiles.ended || this.busy || url === this.shown || this.element.hidden) return;
    this.busy = true;
    tiles
      .fetch(small, this.shown === "")
      .then(
        (bitmap) => {
          this.image.width = bitmap.width;
          this.image.height = bitmap.height;
          this.image.getContext("2d").drawImage(bitmap, 0, 0);
          bitmap.close();
          this.shown = url;
        },
        // The picture itself is asked for until it is there; this is a copy of it.
        () => {},
      )
      .finally(() => {
        if (this.closed) return;
        this.timer = setTimeout(() => {
          this.busy = false;
          if (this.zoom.item) this.renew();
        }, RENEW_MS);
      });
  }

  close() {
    this.closed = true;
    clearTimeout(this.timer);
  }
}
