// Drives the pages in a headless Chromium, against any server that has them, and says what does not hold.
//
//   node pages.mjs BASE_URL OUT_DIR [--farm | --picture] [options]
//
//   --render ID         the render to open (the first in the list unless given)
//   --worker NAME       the worker to drain (unless given, none is drained)
//   --ended             the render is over: nothing will change, nothing can be paused
//   --stage-change SEC  wait so long for the next stage, and see that the view stays (slow: left out unless given)
//   --token TOKEN       what the login form asks for
//
// Screenshots go to OUT_DIR. Exit code 0 when everything holds, 1 otherwise. Chromium: $CHROMIUM, or on the PATH.

import { parseArgs } from "node:util";
import { Session, settle } from "./session.mjs";

const {
  values: options,
  positionals: [base, out],
} = parseArgs({
  allowPositionals: true,
  options: {
    farm: { type: "boolean", default: false },
    picture: { type: "boolean", default: false },
    render: { type: "string" },
    worker: { type: "string" },
    ended: { type: "boolean", default: false },
    "stage-change": { type: "string" },
    token: { type: "string" },
  },
});
if (!base || !out) {
  console.error(
    "usage: node pages.mjs BASE_URL OUT_DIR [--farm | --picture] [--render ID] [--worker NAME] [--ended] [--stage-change SECONDS] [--token TOKEN]",
  );
  process.exit(1);
}

const PHONE = { width: 390, height: 844 };
const NARROWEST = { width: 360, height: 740 };
const DESKTOP = { width: 1440, height: 900 };

/** Tile requests, newest last: `{level, c}`. */
const levels = (session) =>
  session.requests
    .map((url) => /\/tiles\/(?:\d+\/)?(\d+)\/\d+_\d+/.exec(url))
    .filter(Boolean)
    .map((match) => Number(match[1]));

async function fits(session, name) {
  const { wide, inner } = await session.page.evaluate(() => ({
    wide: document.scrollingElement.scrollWidth,
    inner: innerWidth,
  }));
  session.check(`${name}: no horizontal scroll (${wide} <= ${inner})`, wide <= inner);
}

/** Every size and both colours. */
async function portraits(session, name) {
  for (const [kind, size, scheme] of [
    ["light", DESKTOP, "light"],
    ["dark", DESKTOP, "dark"],
    ["phone", PHONE, "light"],
    ["phone-dark", NARROWEST, "dark"],
  ]) {
    await session.page.emulateMedia({ colorScheme: scheme });
    await session.page.setViewportSize(size);
    await settle(700);
    await fits(session, `${name}, ${size.width} wide`);
    await session.shot(`${name}-${kind}`);
  }
  await session.page.emulateMedia({ colorScheme: "light" });
  await session.page.setViewportSize(DESKTOP);
  await settle(300);
}

async function login(session) {
  if (options.token === undefined) return;
  const field = session.page.locator("#token");
  await field.waitFor();
  await session.shot("login");
  await field.fill(`${options.token}-wrong`);
  await field.press("Enter");
  await session.until(
    "a wrong token is refused in words",
    async () => (await session.page.locator("[role=alert]").textContent())?.length > 0,
  );
  await field.fill(options.token);
  await field.press("Enter");
}

async function viewer(session) {
  const { page } = session;
  // Screen pixels that the whole picture is wide: unlike the zoom, the same in the next stage.
  const zoom = () => page.locator(".zoom").evaluate(({ dataset }) => Number(dataset.zoom) * Number(dataset.width));
  await session.until("the viewer opens the picture", async () => (await zoom()) > 0, 15000);
  await session.until("OpenSeadragon loads tiles", () => levels(session).length > 0);
  // Painted, not only requested: the canvas has more than one colour.
  await session.until("the picture is painted", () =>
    page.evaluate(() => {
      const canvas = document.querySelector(".openseadragon-canvas canvas");
      const copy = new OffscreenCanvas(80, 80).getContext("2d", { willReadFrequently: true });
      copy.drawImage(canvas, 40 - canvas.width / 2, 40 - canvas.height / 2);
      const { data } = copy.getImageData(0, 0, 80, 80);
      return new Set(new Uint32Array(data.buffer)).size > 4;
    }),
  );
  await settle(600);
  const fitted = await zoom();
  const deepest = Math.max(...levels(session));
  const most = Math.ceil(
    Math.log2(
      Math.max(
        ...(await page.locator(".zoom").evaluate(({ dataset }) => [Number(dataset.width), Number(dataset.height)])),
      ),
    ),
  );
  await page.mouse.move(600, 450);
  await page.keyboard.press("+");
  await session.until("the + key zooms in", async () => (await zoom()) > fitted * 1.2);
  await page.keyboard.press("1");
  await session.until(
    "the 1 key shows 100 %",
    async () => Math.abs(Number(await page.locator(".zoom").getAttribute("data-zoom")) - 1) < 0.01,
  );
  await session.until("the zoom is said in percent", async () =>
    /^\d+%$/.test(await page.locator(".percent").textContent()),
  );
  if (deepest < most)
    await session.until(
      `zooming in loads deeper tiles (beyond level ${deepest} of ${most})`,
      () => Math.max(...levels(session)) > deepest,
    );
  await page.mouse.move(620, 460);
  await session.until("coordinates under the pointer are shown", async () =>
    /^[\d,]+, [\d,]+$/.test(await page.locator(".spot").textContent()),
  );
  const spot = await page.locator(".spot").textContent();
  await page.keyboard.press("ArrowRight");
  await session.until(
    "an arrow key moves the picture",
    async () => (await page.locator(".spot").textContent()) !== spot,
  );
  await session.shot("zoomed");
  await page.locator("[data-tool=fit]").click();
  await session.until("the fit button shows all of it", async () => Math.abs((await zoom()) / fitted - 1) < 0.02);
  await page.setViewportSize({ width: 700, height: 620 });
  await session.until("and still all of it in a smaller window", () =>
    page.locator(".seen").evaluate((seen) => seen.hidden),
  );
  await page.setViewportSize(DESKTOP);
  await settle(500);
  const full = () => page.evaluate(() => document.fullscreenElement !== null);
  await page.keyboard.press("f");
  await session.until("the f key fills the screen", full);
  await page.keyboard.press("f");
  await session.until("and leaves it again", async () => !(await full()));
  const small = page.locator(".navigator");
  session.check("the navigator covers nothing of a picture that fits", await small.isHidden());
  for (const key of ["1", "+", "+", "+"]) await page.keyboard.press(key);
  await session.until("it is there once the picture is larger than the view", () => small.isVisible());
  await page.keyboard.press("n");
  session.check("the n key toggles the navigator", await small.isHidden());
  await page.keyboard.press("n");
  await page.keyboard.press("0");
  await settle(600);
  await page.mouse.move(600, 450);
  await page.mouse.wheel(0, -300);
  await session.until("the wheel zooms", async () => (await zoom()) > fitted * 1.05);
  await page.keyboard.press("0");
  await settle(600);
}

async function help(session) {
  await session.page.keyboard.press("?");
  await session.until("the ? key opens the help", () => session.page.locator("dialog[open] kbd").first().isVisible());
  await session.page.keyboard.press("Escape");
  await session.until("Esc closes the help", async () => (await session.page.locator("dialog[open]").count()) === 0);
}

async function listKeys(session) {
  const { page } = session;
  const focused = () => page.evaluate(() => document.activeElement?.closest("li")?.dataset.id ?? "");
  await page.keyboard.press("j");
  const first = await focused();
  session.check(
    "the j key goes to the first render",
    first === (await page.locator(".render").first().getAttribute("data-id")),
  );
  if ((await page.locator(".render").count()) > 1) {
    await page.keyboard.press("j");
    session.check("another j goes to the next", (await focused()) !== first);
    await page.keyboard.press("k");
    session.check("the k key goes back", (await focused()) === first);
  }
  if ((await page.locator(".worker").count()) > 0) {
    await page.keyboard.press("w");
    session.check(
      "the w key goes to the workers",
      await page.evaluate(() => document.activeElement?.closest(".worker") !== null),
    );
    await page.keyboard.press("Escape");
    session.check("Esc goes back to the renders", (await focused()) !== "");
  }
}

async function drain(session, name) {
  const { page } = session;
  const row = page.locator(`.worker[data-name="${name}"]`);
  await row.waitFor();
  await row.locator("[data-action=drain]").click();
  await session.until("draining asks first", () => page.locator("dialog[open]").isVisible());
  await page.keyboard.press("Escape");
  await settle(300);
  session.check("Esc keeps the worker", (await row.getAttribute("data-state")) !== "draining");
  await row.locator("[data-action=drain]").click();
  await page.locator("dialog[open] button[value=yes]").click();
  await session.until(
    `${name} is draining or gone`,
    async () => (await row.count()) === 0 || ["draining", "offline"].includes(await row.getAttribute("data-state")),
  );
}

async function pauseAndContinue(session, id) {
  const { page } = session;
  const row = page.locator(`.render[data-id="${id}"]`);
  const becomes = (name, ...states) =>
    session.until(name, async () => states.includes(await row.getAttribute("data-state")), 20000);
  await row.locator("[data-action=pause]").click();
  await becomes("the pause button pauses", "paused");
  await row.locator("a.name").focus();
  await page.keyboard.press("p");
  await becomes("the p key continues", "running", "queued");
  await row.locator("[data-action=cancel]").click();
  await session.until("cancelling asks first", () => page.locator("dialog[open]").isVisible());
  await session.shot("cancel");
  await page.keyboard.press("Escape");
  await settle(300);
  session.check("Esc keeps the render", (await row.getAttribute("data-state")) !== "cancelled");
}

async function grows(session) {
  const { page } = session;
  const seen = () =>
    page.evaluate(() => {
      const { version, changed } = document.querySelector(".zoom").dataset;
      return {
        canvas: `${version} ${changed}`,
        progress: document.querySelector(".panel [role=progressbar]").getAttribute("aria-valuetext"),
      };
    });
  const before = await seen();
  session.requests.length = 0;
  await page.evaluate(() => {
    window.untouched = true;
  });
  await session.until(
    "the canvas changes while it is looked at",
    async () => (await seen()).canvas !== before.canvas,
    60000,
  );
  await session.until("the progress changes with it", async () => (await seen()).progress !== before.progress, 60000);
  await session.until(
    "changed tiles are asked for again",
    () => session.requests.some((url) => /[?&]c=\d/.test(url)),
    20000,
  );
  session.check("without navigation", await page.evaluate(() => window.untouched === true));
}

/** Zooms to a place and sees that it is still there, at the same share of the picture, after the next stage. */
async function keepsView(session, seconds) {
  const { page } = session;
  const place = page.locator(".zoom");
  await page.keyboard.press("0");
  await settle(500);
  for (const key of ["+", "+", "+", "ArrowRight", "ArrowDown"]) await page.keyboard.press(key);
  await settle(900);
  await page.mouse.move(600, 450);
  await settle(200);
  const view = async () => {
    const [{ zoom, width, version }, spot] = [
      await place.evaluate(({ dataset }) => ({ ...dataset })),
      await page.locator(".spot").textContent(),
    ];
    const [x, y] = spot.split(", ").map((text) => Number(text.replaceAll(",", "")));
    return { version, zoom: zoom * width, x: x / width, y: y / width };
  };
  const before = await view();
  // Looks at the middle of the screen in every frame: while one picture replaces another there must be one.
  await page.evaluate(() => {
    const spot = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    window.frames_seen = { all: 0, blank: 0 };
    (function look() {
      const canvas = document.querySelector(".openseadragon-canvas canvas");
      if (!canvas) return;
      spot.clearRect(0, 0, 1, 1);
      spot.drawImage(canvas, -Math.floor(canvas.width / 2), -Math.floor(canvas.height / 2));
      window.frames_seen.all += 1;
      if (spot.getImageData(0, 0, 1, 1).data[3] === 0) window.frames_seen.blank += 1;
      requestAnimationFrame(look);
    })();
  });
  await session.until(
    "the next stage begins",
    async () => (await place.getAttribute("data-version")) !== before.version,
    seconds * 1000,
  );
  await settle(1500);
  const after = await view();
  const { all, blank } = await page.evaluate(() => window.frames_seen);
  session.check(`the screen is never blank on the way (${blank} of ${all} frames)`, blank === 0 && all > 0);
  session.check("the next stage keeps the zoom", Math.abs(after.zoom / before.zoom - 1) < 0.01);
  session.check(
    "the next stage keeps the place",
    Math.abs(after.x - before.x) < 0.01 && Math.abs(after.y - before.y) < 0.01,
  );
}

async function farm(session) {
  const { page } = session;
  await page.goto(base);
  await login(session);
  const chosen = options.render
    ? page.locator(`.render[data-id="${options.render}"]`)
    : page.locator(".render").first();
  await session.until("the render appears", () => chosen.isVisible(), 20000);
  const id = await chosen.getAttribute("data-id");
  await session.until(
    "the page says that it is live",
    async () => (await page.locator(".connection").textContent()) === "live",
  );
  await listKeys(session);
  await help(session);
  await portraits(session, "farm");
  if (!options.ended) await pauseAndContinue(session, id);

  await page.locator(`.render[data-id="${id}"] a.name`).focus();
  await page.keyboard.press("Enter");
  await session.until("Enter opens the render", async () => page.url().includes("#/renders/"));
  await viewer(session);
  if (!options.ended) await grows(session);
  if (await page.locator("[data-tool=overlay]").isVisible()) {
    await page.keyboard.press("o");
    session.check("the o key hides the overlay", await page.locator(".overlay").isHidden());
    await page.keyboard.press("o");
  }
  await portraits(session, "render");
  if (options["stage-change"]) await keepsView(session, Number(options["stage-change"]));
  await page.keyboard.press("Escape");
  await session.until("Esc goes back to the list", async () => chosen.isVisible());
  session.check(
    "the focus is on the render one came from",
    (await page.evaluate(() => document.activeElement?.closest("li")?.dataset.id)) === id,
  );
  if (options.worker) await drain(session, options.worker);
  await themeIsRemembered(session);
  const polls = session.everything.filter((url) => new URL(url).pathname === "/api/state").length;
  session.check(`no polling (/api/state was asked for ${polls} times)`, polls <= 1);
}

async function themeIsRemembered(session) {
  const { page } = session;
  const theme = () => page.evaluate(() => document.documentElement.dataset.theme ?? "");
  await page.locator("[aria-label='Use dark colours']").click();
  session.check("the button makes it dark", (await theme()) === "dark");
  await page.reload();
  await page.locator("[aria-label='Use light colours']").waitFor();
  session.check("and it stays dark", (await theme()) === "dark");
}

async function picture(session) {
  const { page } = session;
  await page.goto(base);
  await login(session);
  await session.until(
    "the picture's name is shown",
    async () => (await page.locator("h1").textContent())?.length > 0,
    20000,
  );
  await viewer(session);
  await help(session);
  await page.keyboard.press("i");
  await session.until("the i key opens the information", () => page.locator(".panel .facts").isVisible());
  await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  const copied = page.locator(".panel [data-action=copy]").first();
  if (await copied.isVisible()) {
    await copied.click();
    await session.until(
      "the parameters can be copied",
      async () => (await page.evaluate(() => navigator.clipboard.readText())).length > 0,
    );
  }
  session.check("the information has the size", /\d × \d/.test(await page.locator(".panel .facts").textContent()));
  await portraits(session, "picture");
  await page.keyboard.press("i");
  session.check("the i key closes it", await page.locator(".panel").isHidden());
  await portraits(session, "picture-alone");
  await themeIsRemembered(session);
}

const session = await Session.open(out);
try {
  await (options.picture ? picture(session) : farm(session));
} catch (error) {
  session.check(`the walk through the pages: ${error.message}`, false);
  await session.shot("failure").catch(() => {});
}
process.exit((await session.close()) ? 0 : 1);
