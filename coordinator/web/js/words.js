// What states are called, what they look like, and what can be done about them.

const RENDERS = {
  queued: ["Queued", "quiet"],
  running: ["Running", "active"],
  paused: ["Paused", "warn"],
  done: ["Done", "good"],
  cancelled: ["Cancelled", "quiet"],
  failed: ["Failed", "bad"],
};

const WORKERS = {
  working: ["Working", "active"],
  idle: ["Idle", "quiet"],
  examined: ["Examined", "info"],
  draining: ["Draining", "warn"],
  disabled: ["Disabled", "quiet"],
  blocked: ["Blocked", "bad"],
  refused: ["Refused", "bad"],
  silent: ["Silent", "warn"],
  offline: ["Offline", "quiet"],
};

const named = (table, state) => table[state] ?? [state, "quiet"];

export const renderState = (state) => ({ word: named(RENDERS, state)[0], tone: named(RENDERS, state)[1] });
export const workerState = (state) => ({ word: named(WORKERS, state)[0], tone: named(WORKERS, state)[1] });

export const isOver = (render) => ["done", "cancelled", "failed"].includes(render.state);
export const canPause = (render) => render.state === "running" || render.state === "queued";
export const canContinue = (render) => render.state === "paused" || render.state === "failed";

/** What a worker can be told: drained workers leave, whatever is said afterwards; disabled ones stay and wait. */
export function workerActions(worker) {
  switch (worker.state) {
    case "offline":
      return [];
    case "draining":
      return [];
    case "disabled":
    case "blocked":
      return ["enable", "drain"];
    case "refused":
      return ["enable", "drain"];
    default:
      return ["disable", "drain"];
  }
}

export const ACTION_WORDS = { enable: "Enable", disable: "Disable", drain: "Drain" };
export const ACTION_HINTS = {
  enable: "Give this worker tasks again",
  disable: "Finish what it has, then stay connected without tasks",
  drain: "Finish what it has, then leave the farm",
};
