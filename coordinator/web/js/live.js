// A stream of server-sent events that says how it is: connecting, live or lost. It is closed while the page is hidden,
// because browsers allow six connections a server and every open tab would hold one or two.
//
// The server pings. A stream that is silent for longer is lost, whatever the browser thinks of the connection: a server
// that hangs and a network that swallows everything break no connection.

import { get, hooks } from "./api.js";

/** Milliseconds without a word after which a stream is lost: three pings. */
const SILENCE = 15000;
/** Milliseconds before a refused stream is asked for again: doubled each time, up to the second number. */
const RETRY_AFTER = [2000, 30000];

export class Stream {
  /** `onData(object)` for every event called `event`; `onStatus("connecting" | "live" | "lost")`. */
  constructor(path, event, onData, onStatus = () => {}) {
    Object.assign(this, { path, event, onData, onStatus, source: null, timer: null, watch: null });
    Object.assign(this, { status: "", wait: RETRY_AFTER[0], closed: false });
    this.visibility = () => (document.hidden ? this.disconnect() : this.connect());
    // Nothing is known of a network that was away; it is looked at once it is back.
    this.online = () => this.status === "lost" && this.renew();
    document.addEventListener("visibilitychange", this.visibility);
    addEventListener("online", this.online);
    this.connect();
  }

  connect() {
    if (this.source || this.closed || document.hidden) return;
    clearTimeout(this.timer);
    this.setStatus("connecting");
    const source = new EventSource(this.path);
    this.source = source;
    this.listen();
    source.addEventListener("open", () => this.heard());
    source.addEventListener("ping", () => this.heard());
    source.addEventListener(this.event, (message) => {
      this.heard();
      this.onData(JSON.parse(message.data));
    });
    source.addEventListener("error", () => {
      this.setStatus("lost");
      // The browser tries again by itself after a broken connection, but gives up after an HTTP error.
      if (source.readyState !== EventSource.CLOSED) return;
      this.disconnect();
      this.timer = setTimeout(() => this.retry(), this.wait);
      this.wait = Math.min(this.wait * 2, RETRY_AFTER[1]);
    });
  }

  heard() {
    this.wait = RETRY_AFTER[0];
    this.listen();
    this.setStatus("live");
  }

  /** From now on something must be heard. */
  listen() {
    clearTimeout(this.watch);
    this.watch = setTimeout(() => {
      this.setStatus("lost");
      this.renew();
    }, SILENCE);
  }

  renew() {
    this.disconnect();
    this.connect();
  }

  /** An event stream does not say why it was refused; the mode tells whether a token is needed by now. */
  async retry() {
    try {
      if ((await get("/api/mode")).login) hooks.loginNeeded();
    } catch {
      // Still away; the stream will say so.
    }
    this.connect();
  }

  setStatus(status) {
    if (status === this.status || (status === "connecting" && this.status === "lost")) return;
    this.status = status;
    this.onStatus(status);
  }

  disconnect() {
    clearTimeout(this.timer);
    clearTimeout(this.watch);
    this.source?.close();
    this.source = null;
  }

  close() {
    this.closed = true;
    document.removeEventListener("visibilitychange", this.visibility);
    removeEventListener("online", this.online);
    this.disconnect();
  }
}

/** The farm's state, shared by all pages. */
export class Farm {
  constructor() {
    Object.assign(this, { state: null, received: 0, status: "connecting", listeners: new Set() });
    this.stream = new Stream(
      "/api/events",
      "state",
      (state) => this.take(state),
      (status) => {
        this.status = status;
        this.tell();
      },
    );
  }

  take(state) {
    this.state = state;
    this.received = performance.now();
    this.tell();
  }

  /** Puts an action's answer in place at once, without waiting for the next event. */
  put(kind, key, value) {
    if (!this.state || !value) return;
    this.state = { ...this.state, [kind]: this.state[kind].map((old) => (old[key] === value[key] ? value : old)) };
    this.tell();
  }

  /** Seconds since the state came: ages in it are that much older by now. */
  get elapsed() {
    return this.state ? (performance.now() - this.received) / 1000 : 0;
  }

  tell() {
    for (const listener of this.listeners) listener(this);
  }

  /** Calls `listener` now and at every change; returns what ends that. */
  follow(listener) {
    this.listeners.add(listener);
    listener(this);
    return () => this.listeners.delete(listener);
  }

  close() {
    this.listeners.clear();
    this.stream.close();
  }
}
