// A server with the interface of the pages and nothing behind it. Needs nothing but node.
//
//   node mock.mjs [--picture] [--empty] [--odd] [--port 7480] [--pace 1] [--token TOKEN]
//
// --pace 0.2 makes the mock's workers five times faster. --odd: renders and workers with names and texts that a page
// must cope with. POST /mock/tiles?how=ok|500|404|cut|stall|junk says what becomes of tiles from now on: `cut` breaks
// the connection in the middle, `stall` never answers, `junk` sends what is no image. GET /mock/stalled never answers.

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { parseArgs } from "node:util";
import { MockFarm } from "./mock_farm.mjs";
import { tile } from "./mock_picture.mjs";

const { values: options } = parseArgs({
  options: {
    picture: { type: "boolean", default: false },
    empty: { type: "boolean", default: false },
    odd: { type: "boolean", default: false },
    port: { type: "string", default: "7480" },
    pace: { type: "string", default: "1" },
    token: { type: "string" },
  },
});
const WEB = join(import.meta.dirname, "../../coordinator/web");
const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".svg": "image/svg+xml",
  ".txt": "text/plain",
  ".md": "text/plain",
};
const POLICY =
  "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='; object-src 'none'";
const PING_EVERY = 5000;
const COOKIE = "gigasmith-mock=1";
const PICTURE = {
  name: "harbour.tif",
  width: 32768,
  height: 24576,
  tile_size: 256,
  max_level: 15,
  overlap: 0,
  tiles: "/api/picture/tiles/{level}/{x}_{y}",
  format: "BigTIFF, JPEG, 8 levels",
  bytes: 412345678,
  parameters:
    "a harbour at dawn, wooden boats, gulls over the water\nNegative prompt: blurry, text\nSteps: 30, Sampler: DDIM, CFG scale: 7.5, Seed: 7, Size: 32768x24576, Model: pocket",
  settings: {
    prompt: "a harbour at dawn, wooden boats, gulls over the water",
    seed: 7,
    steps: 30,
    guidance_scale: 7.5,
    stages: [2, 4, 8, 16, 32],
  },
};

const farm = new MockFarm(Number(options.pace), options.odd);
/** What becomes of tiles. */
let tiles = "ok";
if (options.empty) Object.assign(farm, { state: () => ({ renders: [], workers: [], version: "gigasmith 0.1.0" }) });
const followers = new Set();

function json(answer, status, body) {
  answer.writeHead(status, { "Content-Type": "application/json" });
  answer.end(body === undefined ? "" : JSON.stringify(body));
}

/** `next()` gives the data of the next event, or null while nothing is new. */
function stream(request, answer, event, every, next) {
  answer.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
  const follower = {
    due: 0,
    ping: 0,
    send(now) {
      if (now >= follower.ping) {
        follower.ping = now + PING_EVERY;
        answer.write("event: ping\ndata: {}\n\n");
      }
      if (now < follower.due) return;
      const data = next();
      if (data === null) return;
      follower.due = now + every;
      answer.write(`event: ${event}\ndata: ${JSON.stringify(data)}\n\n`);
    },
  };
  followers.add(follower);
  follower.send(Date.now());
  request.on("close", () => followers.delete(follower));
}

function followCanvas(request, answer, one) {
  let first = true;
  let [sent, version, flights] = [one.dirty.length, one.version, ""];
  stream(request, answer, "canvas", 500, () => {
    const now = one.flights.map((flight) => `${flight.left},${flight.top},${flight.step}`).join(";");
    const anew = first || version !== one.version;
    if (!anew && sent === one.dirty.length && now === flights) return null;
    const dirty = anew ? null : one.dirty.slice(sent);
    [first, sent, version, flights] = [false, one.dirty.length, one.version, now];
    return one.canvas(dirty);
  });
}

async function file(answer, name) {
  const path = normalize(join(WEB, name));
  if (!path.startsWith(WEB)) return json(answer, 404, { error: "no such file" });
  try {
    const content = await readFile(path);
    answer.writeHead(200, {
      "Content-Type": TYPES[extname(path)] ?? "application/octet-stream",
      "Content-Security-Policy": POLICY,
      "X-Content-Type-Options": "nosniff",
    });
    answer.end(content);
  } catch {
    json(answer, 404, { error: `there is no ${name}` });
  }
}

function png(answer, image) {
  if (!image) return json(answer, 404, { error: "there is no such tile" });
  const head = { "Content-Type": "image/png", "Cache-Control": "no-cache", "Content-Length": image.length };
  answer.writeHead(200, head);
  answer.end(image);
}

/** A tile, or what becomes of it. */
function sendTile(answer, make) {
  if (tiles === "ok") return png(answer, make());
  if (tiles === "stall") return undefined;
  if (tiles === "500" || tiles === "404") return json(answer, Number(tiles), { error: "as it was told" });
  const image = make();
  answer.writeHead(200, { "Content-Type": "image/png", "Content-Length": image.length });
  if (tiles === "junk") return answer.end(Buffer.alloc(image.length, 7));
  return answer.write(image.subarray(0, image.length / 2), () => answer.destroy());
}

async function bodyOf(request) {
  const parts = [];
  for await (const part of request) parts.push(part);
  return parts.length ? JSON.parse(Buffer.concat(parts).toString()) : {};
}

async function act(request, answer, path) {
  if (request.headers["x-gigasmith"] !== "1") return json(answer, 403, { error: "the header X-Gigasmith is missing" });
  if (path === "/api/login") {
    if ((await bodyOf(request)).token !== options.token) return json(answer, 401, { error: "this is not the token" });
    answer.setHeader("Set-Cookie", `${COOKIE}; HttpOnly; SameSite=Strict; Path=/`);
    return json(answer, 204);
  }
  const [, worker] = /^\/api\/workers\/(drain|disable|enable)$/.exec(path) ?? [];
  if (worker) return json(answer, ...farm.changeWorker((await bodyOf(request)).name, worker));
  const [, id, what] = /^\/api\/renders\/([^/]+)\/(pause|continue|cancel)$/.exec(path) ?? [];
  if (!id) return json(answer, 404, { error: "there is no such thing" });
  return json(answer, ...farm.changeRender(decodeURIComponent(id), what));
}

function readRender(request, answer, path) {
  const [, id, rest] = /^\/api\/renders\/([^/]+)\/(.+)$/.exec(path) ?? [];
  if (rest === "settings") {
    const settings = farm.settings(decodeURIComponent(id));
    return settings ? json(answer, 200, settings) : json(answer, 404, { error: `there is no render ${id}` });
  }
  const one = id && farm.canvasOf(decodeURIComponent(id));
  if (!one) return json(answer, 404, { error: "there is nothing to see yet" });
  if (rest === "canvas") return json(answer, 200, one.canvas(null));
  if (rest === "events") return followCanvas(request, answer, one);
  if (rest === "picture") return png(answer, tile(one.spec(), one.spec().max_level - 2, 0, 0));
  const match = /^tiles\/(\d+)\/(\d+)\/(\d+)_(\d+)$/.exec(rest);
  if (!match || Number(match[1]) !== one.version) return json(answer, 404, { error: "there is no such tile" });
  return sendTile(answer, () => tile(one.spec(), Number(match[2]), Number(match[3]), Number(match[4]), one.noise()));
}

async function serve(request, answer) {
  const { pathname: path, searchParams } = new URL(request.url, "http://mock");
  if (path === "/mock/stalled") return undefined;
  if (path === "/mock/tiles") {
    tiles = searchParams.get("how");
    return json(answer, 204);
  }
  const stranger = options.token !== undefined && !(request.headers.cookie ?? "").includes(COOKIE);
  if (path === "/") return file(answer, "index.html");
  if (path.startsWith("/assets/")) return file(answer, path.slice("/assets/".length));
  if (path === "/api/mode")
    return json(answer, 200, {
      mode: options.picture ? "picture" : "farm",
      version: "gigasmith 0.1.0",
      login: stranger,
    });
  if (stranger && path !== "/api/login") return json(answer, 401, { error: "a token is needed" });
  if (request.method === "POST") return act(request, answer, path);
  if (path === "/api/picture" && options.picture) return json(answer, 200, PICTURE);
  const match = /^\/api\/picture\/tiles\/(\d+)\/(\d+)_(\d+)$/.exec(path);
  if (match) return sendTile(answer, () => tile(PICTURE, ...match.slice(1).map(Number)));
  if (path === "/api/state") return json(answer, 200, farm.state());
  if (path === "/api/events") {
    let last = "";
    return stream(request, answer, "state", 250, () => {
      const state = farm.state();
      const key = JSON.stringify(state, (name, value) => (name === "checkpoint" ? undefined : value));
      if (key === last) return null;
      last = key;
      return state;
    });
  }
  return readRender(request, answer, path);
}

setInterval(() => {
  farm.advance();
  for (const follower of followers) follower.send(Date.now());
}, 100);
const server = createServer((request, answer) =>
  serve(request, answer).catch((error) => json(answer, 500, { error: error.message })),
);
server.listen(Number(options.port), "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}/`));
