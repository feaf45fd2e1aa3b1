// What states are called, what they look like, and what can be done about them.

const RENDERS = {
  queued: ["Queued", "quiet"],
  running: ["Running", "active"],
  waiting: ["Waiting for the store", "warn"],
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

const shown = ([word, tone]) => ({ word, tone });

/** A render that cannot reach the store is not what its state says. */
export const renderState = ({ state, store_away: away }) => shown(named(RENDERS, away ? "waiting" : state));
export const workerState = (state) => shown(named(WORKERS, state));

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
