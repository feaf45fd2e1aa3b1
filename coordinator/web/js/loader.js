// Loads images, a few at a time, over the connections that event streams leave.
//
// Every load settles, with an image or an error, and its place is free from that moment on. What the browser makes of a
// cancelled request plays no part in that, nor does a server that says nothing more: silence ends a load too.

/** Connections that images may use: of the browser's six a server, two may be event streams. */
const AT_ONCE = 4;
/** Milliseconds in which nothing comes of an image before it is given up. */
const SILENCE = 20000;

/** The reason given for images that nobody waits for any more. */
export const CANCELLED = "cancelled";

/** The bytes behind `url`, decoded. `heard()` is called for everything that comes. */
async function obtain(url, signal, heard) {
  const answer = await fetch(url, { signal, credentials: "same-origin" });
  heard();
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  const parts = [];
  const reader = answer.body.getReader();
  for (let { value, done } = await reader.read(); !done; { value, done } = await reader.read()) {
    heard();
    parts.push(value);
  }
  return createImageBitmap(new Blob(parts, { type: answer.headers.get("Content-Type") ?? "" }));
}

export class Loader {
  constructor(atOnce = AT_ONCE, silence = SILENCE) {
    // What is missing comes before what is merely old.
    Object.assign(this, { atOnce, silence, running: new Set(), urgent: [], later: [] });
  }

  /** Loads an image when its turn comes. `{image: Promise<ImageBitmap>, cancel()}`; who gets the bitmap closes it. */
  load(url, urgent = true) {
    const control = new AbortController();
    const job = { settled: false };
    const image = new Promise((resolve, reject) => {
      const settle = (act, value) => {
        if (job.settled) return value?.close?.();
        job.settled = true;
        clearTimeout(job.timer);
        this.running.delete(job);
        act(value);
        control.abort();
        return this.next();
      };
      job.cancel = (reason) => settle(reject, new Error(reason));
      const heard = () => {
        clearTimeout(job.timer);
        if (!job.settled)
          job.timer = setTimeout(() => job.cancel("the server says nothing more"), this.silence);
      };
      job.start = () => {
        this.running.add(job);
        heard();
        obtain(url, control.signal, heard).then(
          (bitmap) => settle(resolve, bitmap),
          (error) => settle(reject, error),
        );
      };
    });
    // Whoever waits for it learns of a failure; that nobody waits any more is none.
    image.catch(() => {});
    (urgent ? this.urgent : this.later).push(job);
    this.next();
    return { image, cancel: () => job.cancel(CANCELLED) };
  }

  next() {
    while (this.running.size < this.atOnce && this.urgent.length + this.later.length > 0) {
      const job = this.urgent.shift() ?? this.later.shift();
      if (!job.settled) job.start();
    }
  }
}

/** The images of all pictures of this page. */
export const images = new Loader();
