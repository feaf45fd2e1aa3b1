// Requests to the server. Every failure becomes an Error whose message can be shown to people.

/** Set by the entry point: called when a request is answered with 401. */
export const hooks = { loginNeeded: () => {} };

/** Milliseconds for an answer. */
const PATIENCE = 15000;

async function request(path, options) {
  let answer;
  let text;
  try {
    const signal = AbortSignal.timeout(PATIENCE);
    answer = await fetch(path, { credentials: "same-origin", cache: "no-store", signal, ...options });
    text = await answer.text();
  } catch (error) {
    if (error.name !== "TimeoutError") throw new Error("the server does not answer");
    const unknown = options.method ? "; whether it was done shows here once it is back" : "";
    throw new Error(`the server has not answered for ${PATIENCE / 1000} seconds${unknown}`);
  }
  if (answer.status === 401 && path !== "/api/login") hooks.loginNeeded();
  let body = null;
  try {
    body = text ? JSON.parse(text) : null;
  } catch {
    // Not JSON: a proxy's page, say. The status has to do.
  }
  if (!answer.ok) {
    const error = new Error(body?.error ?? `the server answered ${answer.status} ${answer.statusText}`.trim());
    error.status = answer.status;
    throw error;
  }
  return body;
}

export const get = (path) => request(path, {});

/** Changes something. The header tells the server that no foreign page sent this. */
export function post(path, body) {
  const headers = { "X-Gigasmith": "1" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  return request(path, { method: "POST", headers, body: body === undefined ? undefined : JSON.stringify(body) });
}

const named = (name) => encodeURIComponent(name);

export const paths = {
  render: (id) => `#/renders/${named(id)}`,
  renderEvents: (id) => `/api/renders/${named(id)}/events`,
  picture: (id) => `/api/renders/${named(id)}/picture`,
  settings: (id) => `/api/renders/${named(id)}/settings`,
};

export const changeRender = (id, change) => post(`/api/renders/${named(id)}/${change}`);
/** A worker's name may be anything, and an address cannot hold everything: `..` in one names its parent. */
export const changeWorker = (name, change) => post(`/api/workers/${change}`, { name });
