// A farm that only pretends: renders that advance by the clock, workers that can be drained.

const STEPS = 30;
const SIDE = 256;
const TILE = 256;
const STAGES = [1024, 2048, 4096];
/** Patches of every stage: one that covers the base, then four by four cells each. */
const PATCHES = STAGES.map((size) => Math.max(1, size / SIDE / 4) ** 2 * STEPS);

/** A render whose canvas grows: each step of a stage is done patch by patch, in disorder. */
class Growing {
  constructor(id, prompt) {
    Object.assign(this, {
      id,
      prompt,
      state: "running",
      stage: 0,
      version: 1,
      kind: "latents",
      changed: 0,
      began: Date.now(),
      reason: "",
    });
    this.enter(0);
  }

  enter(stage) {
    this.stage = stage;
    this.size = STAGES[stage];
    this.columns = this.size / SIDE;
    this.cells = new Array(this.columns ** 2).fill(0);
    this.patchCells = Math.min(4, this.columns);
    this.flights = [];
    this.dirty = [];
    this.tick = 0;
  }

  spec() {
    return {
      width: this.size,
      height: this.size,
      tile_size: TILE,
      max_level: Math.ceil(Math.log2(this.size)),
      overlap: 0,
    };
  }

  /** Hands the free slots patches that are furthest behind, and finishes those that are old. */
  advance(now, workers, pace) {
    if (this.state !== "running") return false;
    const steps = this.kind === "tiles" ? 1 : STEPS;
    for (const flight of this.flights.filter((one) => now - one.since >= one.takes)) {
      for (const cell of flight.cells) this.cells[cell] = Math.min(steps, this.cells[cell] + 1);
      this.flights.splice(this.flights.indexOf(flight), 1);
      const worker = workers.find((one) => one.name === flight.worker);
      if (worker) worker.done += 1;
      this.dirty.push([flight.left, flight.top, flight.width, flight.height]);
      this.changed += 1;
    }
    if (this.cells.every((done) => done >= steps) && this.flights.length === 0) return this.nextStage();
    for (const worker of workers) {
      const busy = this.flights.filter((one) => one.worker === worker.name).length;
      if (worker.takes && busy < worker.slots) this.start(worker, now, pace, steps);
    }
    return true;
  }

  start(worker, now, pace, steps) {
    const taken = new Set(this.flights.flatMap((one) => one.cells));
    const span = this.kind === "tiles" ? 2 : this.patchCells;
    let best = null;
    for (let y = 0; y < this.columns; y += span) {
      for (let x = 0; x < this.columns; x += span) {
        const cells = [];
        for (let j = 0; j < span; j += 1) for (let i = 0; i < span; i += 1) cells.push((y + j) * this.columns + x + i);
        const least = Math.min(...cells.map((cell) => this.cells[cell]));
        if (least >= steps || cells.some((cell) => taken.has(cell))) continue;
        if (!best || least < best.least) best = { least, cells, x, y };
      }
    }
    if (!best) return;
    this.flights.push({
      left: best.x * SIDE,
      top: best.y * SIDE,
      width: span * SIDE,
      height: span * SIDE,
      cells: best.cells,
      step: best.least,
      worker: worker.name,
      since: now,
      takes: pace * worker.seconds_per_task * 1000,
    });
  }

  nextStage() {
    this.version += 1;
    this.changed += 1;
    this.began = Date.now();
    if (this.kind === "tiles") {
      Object.assign(this, { kind: "picture", state: "done", flights: [] });
    } else if (this.stage + 1 < STAGES.length) {
      this.enter(this.stage + 1);
    } else {
      this.enter(this.stage);
      this.kind = "tiles";
    }
    return true;
  }

  noise() {
    if (this.kind === "picture") return () => 0;
    const steps = this.kind === "tiles" ? 1 : STEPS;
    const least = this.kind === "tiles" ? 0.25 : this.stage === 0 ? 1 : 0.6;
    return (u, v) => {
      const cell =
        Math.min(this.columns - 1, Math.floor(v * this.columns)) * this.columns +
        Math.min(this.columns - 1, Math.floor(u * this.columns));
      return least * (1 - this.cells[cell] / steps);
    };
  }

  canvas(dirty) {
    const now = Date.now();
    return {
      ...this.spec(),
      version: this.version,
      kind: this.kind,
      stage: this.stage,
      stages: STAGES.length,
      changed: this.changed,
      dirty,
      tiles: `/api/renders/${this.id}/tiles/${this.version}/{level}/{x}_{y}`,
      steps: this.kind === "tiles" ? 1 : STEPS,
      cells:
        this.kind === "picture" ? null : { columns: this.columns, rows: this.columns, side: SIDE, done: this.cells },
      in_flight: this.flights.map(({ left, top, width, height, step, worker, since }) => ({
        left,
        top,
        width,
        height,
        step,
        worker,
        seconds: (now - since) / 1000,
      })),
    };
  }

  render(workers) {
    const patch = this.kind === "tiles" ? 4 : this.patchCells ** 2;
    const steps = this.kind === "tiles" ? 1 : STEPS;
    const all = Math.round((this.cells.length * steps) / patch);
    const done = Math.round(this.cells.reduce((a, b) => a + b, 0) / patch);
    const later = PATCHES.slice(this.stage + 1).reduce((sum, patches) => sum + patches, 0);
    const helpers = workers.filter((one) => one.takes).length;
    const rate = this.state === "running" ? 3.2 : 0;
    const left = this.state === "done" ? 0 : this.kind === "tiles" ? 0 : all - done + later;
    const decoding = this.kind === "tiles";
    return {
      id: this.id,
      state: this.state,
      priority: 0,
      model: "pocket",
      prompt: this.prompt,
      seed: 7,
      size: [4096, 4096],
      stage: this.stage,
      stages: STAGES.length,
      stage_size: [this.size, this.size],
      patches_done: decoding || this.state === "done" ? 480 : done,
      patches: decoding || this.state === "done" ? 480 : all,
      phase: decoding ? "decoding" : "",
      tiles_done: decoding ? done : 0,
      tiles: decoding ? all : 0,
      rate,
      patches_left: left,
      patches_all: PATCHES.reduce((sum, patches) => sum + patches, 0),
      store_away: false,
      format: "tif",
      seconds_left: rate ? left / rate : null,
      workers: helpers,
      reason: this.state === "running" && helpers === 0 ? "no worker can take its tasks" : this.reason,
      warnings: [],
      checkpoint: this.state === "done" ? null : { age: ((Date.now() - this.began) / 1000) % 60, bytes: 12345678 },
    };
  }
}

const still = (id, state, more) => ({
  id,
  state,
  priority: 0,
  model: "pocket",
  prompt: "",
  seed: 1,
  size: [2048, 2048],
  stage: 0,
  stages: 3,
  stage_size: null,
  patches_done: 0,
  patches: 0,
  phase: "",
  tiles_done: 0,
  tiles: 0,
  rate: 0,
  patches_left: 0,
  patches_all: 0,
  store_away: false,
  format: "png",
  seconds_left: null,
  workers: 0,
  reason: "",
  warnings: [],
  checkpoint: null,
  ...more,
});

const crew = (name, state, more) => ({
  name,
  state,
  device: "NVIDIA RTX 4090",
  model: "pocket",
  numeric_class: "cuda/sm89/f16/v1",
  slots: 2,
  busy: 0,
  done: 0,
  failed: 0,
  seconds_per_task: 0.81,
  silent_for: 0.4,
  reason: "",
  takes: state === "working" || state === "idle",
  ...more,
});

/** Names and texts that nobody should use, and somebody does. */
const ODD = {
  prompt: `first line\nsecond line: \u202egnp.exe\u202c and \u05e9\u05dc\u05d5\u05dd <i>markup</i>\n${"a long description of very many things, ".repeat(30)}THE END`,
  workers: ["..", ".", "a/b?c#d%2e%", "\u202egpu", "<b>bold</b>", "\u05de\u05db\u05d5\u05e0\u05d4", "a b\tc", "x".repeat(90)],
};

export class MockFarm {
  constructor(pace, odd = false) {
    this.pace = pace;
    this.growing = new Growing(
      "harbour",
      "a harbour at dawn, wooden boats, gulls over the water, mist between the masts, a lighthouse on the far pier, oil on canvas",
    );
    this.finished = new Growing("hills", "green hills by the sea at sunset, a sun");
    Object.assign(this.finished, { kind: "picture", state: "done", version: 5 });
    this.finished.enter(2);
    this.others = [
      still("valley-at-noon", "paused", {
        prompt: "a wide valley at noon <b>with a river</b>",
        size: [8192, 8192],
        stages: 4,
        stage: 2,
        stage_size: [4096, 4096],
        patches_done: 311,
        patches: 750,
        patches_left: 3211,
        patches_all: 4100,
        reason: "paused: patch 312 failed on 3 workers (out of memory)",
        warnings: ["the store has been away for 4 minutes: checkpoints are late"],
        checkpoint: { age: 262, bytes: 88123456 },
      }),
      still("cliffs", "queued", {
        prompt: "chalk cliffs in a storm",
        model: "stabilityai/stable-diffusion-xl-base-1.0",
        size: [32768, 32768],
        stages: 6,
        priority: 5,
        patches_left: 48211,
        reason: "no worker holds its model",
      }),
      still("old-mill", "failed", {
        prompt: "an old mill",
        stage: 1,
        reason: "the decoder's answer has a wrong shape: 3x512x511",
      }),
      still("dunes", "done", { prompt: "dunes", format: "dzi", stage: 2 }),
      still("glacier", "running", { prompt: "a glacier", store_away: true, reason: "the store does not answer" }),
      still("test-3", "cancelled", { prompt: "test", reason: "cancelled by a person" }),
    ];
    this.workers = [
      crew("rack-1", "working", { done: 812 }),
      crew("rack-2", "working", { done: 640, seconds_per_task: 1.15, failed: 2, device: "NVIDIA RTX 3090" }),
      crew("rack-3", "working", {
        done: 95,
        seconds_per_task: 2.4,
        slots: 1,
        device: "Apple M2 Max",
        numeric_class: "metal/m2/f16/v1",
      }),
      crew("attic", "examined", {
        slots: 1,
        seconds_per_task: 0,
        reason: "answers the questions that its class is known by",
      }),
      crew("laptop-of-the-second-floor", "disabled", {
        seconds_per_task: 4.12,
        device: "CPU, 8 cores",
        numeric_class: "cpu/avx2/f32/v1",
        reason: "disabled by a person",
      }),
      crew("rack-9", "blocked", { failed: 5, done: 12, reason: "five failures in a row; the last: device lost" }),
      crew("rack-10", "silent", { silent_for: 41, seconds_per_task: 0.9, reason: "nothing heard for 41 s" }),
    ];
    if (odd) this.beOdd();
  }

  beOdd() {
    this.others.push(still("odd", "running", { prompt: `${ODD.prompt.slice(0, 500)}…` }));
    this.workers = ODD.workers.map((name) => crew(name, "idle", { device: "cpu/f32", numeric_class: "cpu/f32" }));
  }

  settings(id) {
    const render = this.state().renders.find((one) => one.id === id);
    if (!render) return null;
    const prompt = id === "odd" ? ODD.prompt : render.prompt;
    return {
      prompt,
      negative_prompt: "blurry",
      parameters: `${prompt}\nNegative prompt: blurry\nSteps: 30, CFG scale: 7.5, Seed: ${render.seed}`,
      settings: { spec: { prompt, seed: render.seed, steps: 30, guidance_scale: 7.5 } },
    };
  }

  advance() {
    const now = Date.now();
    this.growing.advance(now, this.workers, this.pace);
    for (const worker of this.workers) {
      worker.busy = this.growing.flights.filter((one) => one.worker === worker.name).length;
      if (worker.takes) worker.state = worker.busy ? "working" : "idle";
    }
    this.workers = this.workers.filter(
      (worker) => worker.state !== "draining" || worker.busy > 0 || now - worker.drained < 4000,
    );
  }

  state() {
    const renders = [this.growing.render(this.workers), ...this.others, this.finished.render(this.workers)];
    return {
      renders,
      workers: this.workers.map(({ takes, drained, ...worker }) => worker),
      version: "gigasmith 0.1.0",
    };
  }

  canvasOf(id) {
    return [this.growing, this.finished].find((one) => one.id === id) ?? null;
  }

  changeRender(id, what) {
    const target =
      this.growing.id === id
        ? this.growing
        : (this.others.find((one) => one.id === id) ?? (this.finished.id === id ? this.finished : null));
    if (!target) return [404, { error: `there is no render ${id}` }];
    const goesOn = target.state === "failed" && what === "continue";
    if (!goesOn && ["done", "cancelled", "failed"].includes(target.state)) return [409, { error: `${id} is ${target.state}` }];
    target.state = { pause: "paused", continue: "running", cancel: "cancelled" }[what];
    target.reason = { pause: "paused by a person", continue: "", cancel: "cancelled by a person" }[what];
    return [200, this.state().renders.find((one) => one.id === id)];
  }

  changeWorker(name, what) {
    const worker = this.workers.find((one) => one.name === name);
    if (!worker) return [404, { error: `there is no worker ${name}` }];
    worker.takes = what === "enable";
    worker.state = { drain: "draining", disable: "disabled", enable: "idle" }[what];
    worker.reason = { drain: "finishes what it has", disable: "disabled by a person", enable: "" }[what];
    worker.drained = Date.now();
    const { takes, drained, ...shown } = worker;
    return [200, shown];
  }
}
