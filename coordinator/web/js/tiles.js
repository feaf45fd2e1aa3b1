// The tiles of one picture, and how they stay new while it is being rendered.
//
// OpenSeadragon keeps a 2D context for every tile. When pixels change nothing is thrown away: a tile that is about to
// be drawn and is older than a change it lies under is fetched once more and painted over in place. So there is no
// flicker, and only what is on the screen and did change is asked for. A tile that could not be
// had is asked for again until it is there or the picture is replaced: nothing needs a reload.

import { CANCELLED, images } from "./loader.js";

/** Changes remembered. A tile older than all of them is fetched anew when it is seen. */
const REMEMBERED = 256;
/** Milliseconds before a tile that could not be had is asked for again: doubled each time, up to the second number. */
const RETRY_AFTER = [1000, 30000];

let made = 0;

export class Tiles {
  /** `spec`: a Picture or a Canvas. `changed` runs after a tile was painted over. */
  constructor(spec, changed = () => {}) {
    made += 1;
    Object.assign(this, {
      id: made,
      spec,
      changed,
      now: spec.changed ?? 0,
      log: [],
      forgotten: spec.changed ?? 0,
      stamps: new WeakMap(),
      busy: new WeakSet(),
      jobs: new Set(),
      waiting: new Set(),
      ended: false,
    });
  }

  url(level, x, y) {
    return this.spec.tiles.replace("{level}", level).replace("{x}", x).replace("{y}", y);
  }

  /** The address with the count of changes, so that nothing between here and the server answers with something older. */
  fresh(url) {
    return this.spec.changed === undefined ? url : `${url}?c=${this.now}`;
  }

  /** An ImageBitmap, which the caller closes. `urgent`: nothing is there yet. Other images are only newer than what is shown, and come after. */
  fetch(url, urgent) {
    if (this.ended) return Promise.reject(new Error(CANCELLED));
    const job = images.load(this.fresh(url), urgent);
    this.jobs.add(job);
    return job.image.finally(() => this.jobs.delete(job));
  }

  /** The same, asked for until it is there. Fails only once the picture was replaced. */
  async persist(url, urgent) {
    for (let pause = RETRY_AFTER[0]; ; pause = Math.min(pause * 2, RETRY_AFTER[1])) {
      const asked = this.now;
      try {
        return { bitmap: await this.fetch(url, urgent), asked };
      } catch (error) {
        if (this.ended) throw error;
      }
      await this.pause(pause);
    }
  }

  /** Waits, but no longer than until `wake` or `end`. */
  pause(milliseconds) {
    return new Promise((resolve) => {
      const over = () => {
        clearTimeout(timer);
        this.waiting.delete(over);
        resolve();
      };
      const timer = setTimeout(over, milliseconds);
      this.waiting.add(over);
    });
  }

  /** The server is back: what could not be had is asked for at once. */
  wake() {
    for (const over of [...this.waiting]) over();
  }

  /** The picture was replaced: what is still asked for would not be found. */
  end() {
    this.ended = true;
    for (const job of [...this.jobs]) job.cancel();
    this.wake();
  }

  /** The highest level that is a single tile: the small picture of the whole. */
  get smallest() {
    const { width, height, tile_size: side, max_level: most } = this.spec;
    return Math.max(0, most - Math.max(0, Math.ceil(Math.log2(Math.max(width, height) / side))));
  }

  source(OpenSeadragon) {
    const { width, height, tile_size: tileSize, overlap, max_level: maxLevel } = this.spec;
    const source = new OpenSeadragon.TileSource({
      width,
      height,
      tileSize,
      tileOverlap: overlap ?? 0,
      minLevel: 0,
      maxLevel,
    });
    source.getTileUrl = (level, x, y) => this.url(level, x, y);
    source.hasTransparency = () => false;
    // Not the address, by which a picture opened anew would find the old one's tiles.
    source.getTileHashKey = (level, x, y) => `${this.id}/${level}/${x}_${y}`;
    const exists = source.tileExists.bind(source);
    source.tileExists = (level, x, y) => !this.ended && exists(level, x, y);
    source.downloadTileStart = async (job) => {
      try {
        const { bitmap, asked } = await this.persist(job.src, true);
        const canvas = document.createElement("canvas");
        canvas.width = bitmap.width;
        canvas.height = bitmap.height;
        const context = canvas.getContext("2d");
        context.drawImage(bitmap, 0, 0);
        bitmap.close();
        this.stamps.set(context, asked);
        job.finish(context, null, "context2d");
      } catch (error) {
        job.fail(error.message, null);
      }
    };
    source.downloadTileAbort = () => {};
    return source;
  }

  /** Notes a change. `dirty`: rectangles in image pixels, or null for everywhere. */
  mark(changed, dirty) {
    if (changed === this.now) return false;
    this.now = changed;
    this.log.push({ changed, dirty });
    while (this.log.length > REMEMBERED) this.forgotten = this.log.shift().changed;
    return true;
  }

  /** Whether pixels of this tile changed after the change number `stamp`. */
  isStale(level, x, y, stamp) {
    if (stamp >= this.now) return false;
    if (stamp < this.forgotten) return true;
    const scale = 2 ** (this.spec.max_level - level);
    const side = this.spec.tile_size * scale;
    // A pixel more on every side: reduced levels mix neighbours.
    const [left, top, right, bottom] = [
      x * side - scale,
      y * side - scale,
      (x + 1) * side + scale,
      (y + 1) * side + scale,
    ];
    const touches = ([l, t, w, h]) => l < right && t < bottom && l + w > left && t + h > top;
    return this.log.some((entry) => entry.changed > stamp && (!entry.dirty || entry.dirty.some(touches)));
  }

  /** Called for every tile about to be drawn: paints it over if it is old. */
  renew({ level, x, y }, context) {
    if (this.ended) return;
    const stamp = this.stamps.get(context) ?? -1;
    if (this.busy.has(context) || !this.isStale(level, x, y, stamp)) {
      // Looked at once for these changes is enough.
      if (stamp >= 0 && !this.busy.has(context)) this.stamps.set(context, this.now);
      return;
    }
    this.busy.add(context);
    this.persist(this.url(level, x, y), false).then(
      ({ bitmap, asked }) => {
        context.drawImage(bitmap, 0, 0);
        bitmap.close();
        this.stamps.set(context, asked);
        this.busy.delete(context);
        this.changed();
      },
      // Replaced: nobody will look at it again.
      () => {},
    );
  }
}
