// A colour for every worker: bright enough for black text on it, and as far apart as ten hues can be.

const COLOURS = [
  "#4cc2ff",
  "#ffb454",
  "#7ee081",
  "#ff8fa3",
  "#c9a4ff",
  "#ffe066",
  "#5ce1cf",
  "#ff9ae0",
  "#b8d86b",
  "#ff9466",
];

/** Hands out colours in the order in which workers appear; a worker keeps its own. */
export class Colours {
  constructor() {
    this.given = new Map();
  }

  of(worker) {
    if (!this.given.has(worker)) this.given.set(worker, COLOURS[this.given.size % COLOURS.length]);
    return this.given.get(worker);
  }
}
