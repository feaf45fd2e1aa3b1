// The tiles of one picture, and how they stay new while it is being rendered.
//
// OpenSeadragon keeps a 2D context for every tile. When pixels change nothing is thrown away: a tile that is about to
// be drawn and is older than a change it lies under is fetched once more and painted over in place. So there is no
// flicker, and only what is on the screen and did change is asked for.

/** Connections that tiles may use: of the browser's six a server, two may be event streams. */
const AT_ONCE = 4;
/** Changes remembered. A tile older than all of them is fetched anew when it is seen. */
const REMEMBERED = 256;

/** The reason given for tiles that nobody waits for any more. */
const REPLACED = "replaced";

let made = 0;
let running = 0;
/** What is missing comes before what is merely old. */
const missing = [];
const old = [];

function next() {
  while (running < AT_ONCE && missing.length + old.length > 0) {
    const job = missing.shift() ?? old.shift();
    if (job.cancelled) continue;
    running += 1;
    job.start().finally(() => {
      running -= 1;
      next();
    });
  }
}

/** Fetches an image when its turn comes. `{image: Promise, cancel()}` */
function fetchImage(url, queue) {
  const image = new Image();
  const job = { cancelled: false };
  const loaded = new Promise((resolve, reject) => {
    job.start = () => {
      image.src = url;
      return image.decode().then(() => resolve(image), reject);
    };
    job.cancel = () => {
      job.cancelled = true;
      image.src = "";
      reject(new Error(REPLACED));
    };
  });
  // Whoever waits for it learns of a failure; that nobody waits any more is none.
  loaded.catch(() => {});
  queue.push(job);
  next();
  return { image: loaded, cancel: job.cancel };
}

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

  /** `urgent`: nothing is there yet. Other images are only newer than what is shown, and come after. */
  fetch(url, urgent) {
    const job = fetchImage(this.fresh(url), urgent ? missing : old);
    if (this.ended) job.cancel();
    this.jobs.add(job);
    const done = () => this.jobs.delete(job);
    job.image.then(done, done);
    return job;
  }

  /** The picture was replaced: what is still asked for would not be found. */
  end() {
    this.ended = true;
    for (const job of this.jobs) job.cancel();
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
    source.downloadTileStart = (job) => {
      const stamp = this.now;
      const { image, cancel } = this.fetch(job.src, true);
      job.userData.cancel = cancel;
      return image.then(
        (picture) => {
          const canvas = document.createElement("canvas");
          canvas.width = picture.naturalWidth;
          canvas.height = picture.naturalHeight;
          const context = canvas.getContext("2d");
          context.drawImage(picture, 0, 0);
          this.stamps.set(context, stamp);
          job.finish(context, null, "context2d");
        },
        (error) => {
          // Enough tries: what was replaced will not come back.
          if (this.ended) job.tries = Infinity;
          job.fail(error.message, null);
        },
      );
    };
    source.downloadTileAbort = (job) => job.userData.cancel?.();
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
    const asked = this.now;
    this.busy.add(context);
    this.fetch(this.url(level, x, y), false)
      .image.then(
        (picture) => {
          context.drawImage(picture, 0, 0);
          this.changed();
        },
        () => {},
      )
      // A tile that could not be had counts as looked at; the next change asks again.
      .finally(() => {
        this.stamps.set(context, asked);
        this.busy.delete(context);
      });
  }
}
