// What a page does when network and server fail it: nothing may wait for ever, and nothing may need a reload.
//
//   node faults.mjs OUT_DIR
//
// Starts the mock by itself. Exit code 0 when everything holds, 1 otherwise. Chromium: $CHROMIUM, or on the PATH.

import { CUT, FAST, SLOW, Session, settle, startMock } from "./session.mjs";

const [out] = process.argv.slice(2);
if (!out) {
  console.error("usage: node faults.mjs OUT_DIR");
  process.exit(1);
}

/** All that a page waits for is over. */
const idle = (page) =>
  page.evaluate(async () => {
    const { images } = await import("/assets/js/loader.js");
    return images.running.size === 0 && images.urgent.length + images.later.length === 0;
  });

/** Whether the middle of the screen shows what the newest version's tile has there, at the full size. */
const isSharp = (page) =>
  page.evaluate(async () => {
    const { dataset } = document.querySelector(".zoom");
    const render = decodeURIComponent(location.hash.split("/").at(-1));
    const [x, y] = document
      .querySelector(".spot")
      .textContent.replace("centre ", "")
      .split(", ")
      .map((text) => Number(text.replaceAll(",", "")));
    const level = Math.ceil(Math.log2(Math.max(dataset.width, dataset.height)));
    const side = 256;
    const name = `${Math.floor(x / side)}_${Math.floor(y / side)}`;
    const answer = await fetch(`/api/renders/${render}/tiles/${dataset.version}/${level}/${name}`);
    const tile = await createImageBitmap(await answer.blob());
    const pixel = (image, left, top) => {
      const spot = new OffscreenCanvas(1, 1).getContext("2d");
      spot.drawImage(image, -left, -top);
      return [...spot.getImageData(0, 0, 1, 1).data];
    };
    const wanted = pixel(tile, x % side, y % side);
    const canvas = document.querySelector(".openseadragon-canvas canvas");
    const { clientWidth, clientHeight } = document.querySelector(".zoom");
    const [across, down] = [canvas.width / canvas.clientWidth, canvas.height / canvas.clientHeight];
    const shown = pixel(canvas, Math.floor((clientWidth / 2) * across), Math.floor((clientHeight / 2) * down));
    return shown[3] === 255 && wanted.every((value, index) => Math.abs(value - shown[index]) <= 3);
  });

async function openRender(session, base, id) {
  await session.page.goto(`${base}#/renders/${id}`);
  await session.page.locator(".zoom").waitFor();
}

/** Every way in which a load can end frees its place. */
async function loads(session, mock) {
  const { page } = session;
  await page.goto(mock.base);
  const tile = "/api/renders/hills/tiles/5/8/0_0";
  const found = await page.evaluate(
    async ([good, silent]) => {
      const { Loader } = await import("/assets/js/loader.js");
      const within = (promise) =>
        Promise.race([
          promise.then(
            (bitmap) => bitmap.width > 0 && (bitmap.close(), "loaded"),
            (error) => error.message,
          ),
          new Promise((resolve) => {
            setTimeout(() => resolve("waits for ever"), 4000);
          }),
        ]);
      const said = {};
      // Four that never answer take all places; a fifth waits for one of them.
      const loader = new Loader();
      const four = [1, 2, 3, 4].map((n) => loader.load(`${silent}?${n}`));
      const fifth = loader.load(good);
      const queued = loader.load(good);
      queued.cancel();
      await new Promise((resolve) => {
        setTimeout(resolve, 300);
      });
      said.waiting = loader.running.size === 4;
      for (const one of four) one.cancel();
      said.cancelled = (await Promise.all(four.map((one) => within(one.image)))).join();
      said.queued = await within(queued.image);
      said.fifth = await within(fifth.image);
      // One cancelled at every moment of its way; twice does no harm.
      for (const after of [0, 1, 3, 10, 30]) {
        const one = loader.load(`${good}?${after}`);
        setTimeout(() => {
          one.cancel();
          one.cancel();
        }, after);
        said[`after ${after} ms`] = await within(one.image);
      }
      said.left = loader.running.size;
      const hasty = new Loader(1, 500);
      said.silence = await within(hasty.load(silent).image);
      said.afterwards = await within(hasty.load(good).image);
      return said;
    },
    [tile, "/mock/stalled"],
  );
  session.check("four loads take the four places", found.waiting);
  session.check(`a cancelled load settles: ${found.cancelled}`, found.cancelled === Array(4).fill("cancelled").join());
  session.check("a load that is cancelled in the queue settles", found.queued === "cancelled");
  session.check(`four cancelled loads let a fifth load: ${found.fifth}`, found.fifth === "loaded");
  const moments = Object.entries(found).filter(([name]) => name.startsWith("after "));
  session.check(
    `a load settles whenever it is cancelled: ${moments.map((moment) => moment.join(" ")).join("; ")}`,
    moments.every(([, how]) => ["loaded", "cancelled"].includes(how)),
  );
  session.check("no place is lost", found.left === 0);
  session.check(`silence ends a load: ${found.silence}`, found.silence === "the server says nothing more");
  session.check("and the next one loads", found.afterwards === "loaded");

  for (const how of ["500", "404", "cut", "junk"]) {
    await mock.tell(how);
    const said = await page.evaluate(async (url) => {
      const { Loader } = await import("/assets/js/loader.js");
      const loader = new Loader();
      const all = await Promise.allSettled([1, 2, 3, 4, 5, 6].map((n) => loader.load(`${url}?${n}`).image));
      return { failed: all.every(({ status }) => status === "rejected"), left: loader.running.size };
    }, tile);
    session.check(`a load that ends as ${how} fails and leaves its place`, said.failed && said.left === 0);
  }
  await mock.tell("ok");
}

/** Away and elsewhere while tiles are on their way. */
async function navigation(session, mock) {
  const { page } = session;
  await page.goto(mock.base);
  await page.locator(".render a.name").first().waitFor();
  await page.evaluate(() => {
    window.untouched = true;
  });
  await session.network(SLOW);
  for (const id of ["harbour", "hills", "harbour", "hills", "harbour"]) {
    session.requests.length = 0;
    await page.evaluate((hash) => {
      location.hash = hash;
    }, `#/renders/${id}`);
    await session.until(
      `tiles of ${id} are on their way`,
      () => session.requests.filter((url) => url.includes("/tiles/")).length >= 3,
      20000,
    );
    await page.keyboard.press("Escape");
    await settle(100);
  }
  await session.network(FAST);
  await session.until("nothing is left of the pages that were left", () => idle(page), 10000);
  await page.evaluate(() => {
    location.hash = "#/renders/hills";
  });
  await session.until(
    "the next picture is shown as a whole",
    async () => (await page.locator(".zoom").getAttribute("data-shown")) === "5",
    20000,
  );
  session.check("without a reload", await page.evaluate(() => window.untouched === true));
}

/** A render looked at over a slow network, to its end. */
async function replaced(session) {
  const { page } = session;
  const mock = await startMock("--pace", "0.02");
  session.servers.add(new URL(mock.base).origin);
  try {
    await session.network(SLOW);
    await openRender(session, mock.base, "harbour");
    const place = page.locator(".zoom");
    const labels = new Set();
    await page.evaluate(() => {
      window.lies = [];
      window.shares = [];
      setInterval(() => {
        const { version, shown } = document.querySelector(".zoom").dataset;
        const said = [...document.querySelectorAll(".panel > p")].some((p) => p.textContent === "The finished picture");
        if (said && version !== shown) window.lies.push(`${version} ${shown}`);
        const bar = document.querySelector(".panel [role=progressbar]");
        if (bar) window.shares.push(Number(bar.getAttribute("aria-valuenow")));
      }, 20);
    });
    await session.until(
      "the render ends while it is looked at",
      async () => {
        labels.add(await place.getAttribute("data-version"));
        return (await page.locator(".panel .state").textContent()) === "Done";
      },
      120000,
    );
    session.check(`the canvas was replaced on the way (${labels.size} versions)`, labels.size >= 3);
    await session.until(
      "the page says that it is the finished picture",
      async () => (await page.locator(".panel > p").allTextContents()).includes("The finished picture"),
      60000,
    );
    await session.network(FAST);
    await page.keyboard.press("1");
    await settle(1200);
    await session.until("and it is: pixel by pixel at 100 %", () => isSharp(page), 15000);
    await session.shot("finished-after-slow");
    const { lies, shares } = await page.evaluate(() => ({ lies: window.lies, shares: window.shares }));
    session.check(`it never said so of an older one ${lies.slice(0, 3)}`, lies.length === 0);
    const back = shares.findIndex((share, index) => index > 0 && share < shares[index - 1]);
    session.check(
      `progress never jumps back (${shares.length} looks${back > 0 ? `: ${shares[back - 1]} -> ${shares[back]}` : ""})`,
      back < 0 && shares.length > 50 && shares.at(-1) === 100,
    );
    await session.until("every place is free again", () => idle(page));
  } finally {
    await session.network(FAST);
    mock.end();
  }
}

/** Tiles that fail for a while, each way. */
async function errors(session, mock) {
  const { page } = session;
  session.expected = /Failed to load resource/;
  for (const how of ["500", "404", "cut", "junk", "stall"]) {
    await mock.tell(how);
    await page.goto("about:blank");
    session.requests.length = 0;
    await openRender(session, mock.base, "hills");
    await session.until(
      `tiles end as ${how}`,
      () => session.requests.filter((url) => url.includes("/tiles/")).length >= 3,
      10000,
    );
    await settle(1500);
    session.check(`${how}: an incomplete picture is not called finished`, (await shownKind(page)) !== "The finished picture");
    await mock.tell("ok");
    await session.until(
      `${how}: the picture comes once the server gives it, without a reload`,
      async () => (await page.locator(".zoom").getAttribute("data-shown")) === "5",
      40000,
    );
  }
  session.expected = null;
}

const shownKind = async (page) => (await page.locator(".panel > p").allTextContents()).join(" ");

/** A server that is there and says nothing. */
async function silence(session) {
  const { page } = session;
  const mock = await startMock("--pace", "0.3");
  session.servers.add(new URL(mock.base).origin);
  try {
    await page.goto(mock.base);
    const connection = page.locator(".connection");
    await session.until("the page is live", async () => (await connection.textContent()) === "live");
    mock.child.kill("SIGSTOP");
    const worker = page.locator('.worker[data-name="rack-1"] [data-action=disable]');
    await worker.click();
    await session.until(
      "an action that takes its time says so",
      () => session.noted("has not answered yet"),
      6000,
    );
    await session.until(
      "a stopped server is noticed",
      async () => (await connection.textContent()) === "lost" && (await page.locator(".alarm").textContent()) !== "",
      20000,
    );
    await session.shot("silent");
    await session.until(
      "an action that was not answered says so",
      () => session.noted("has not answered for 15 seconds"),
      20000,
    );
    session.check("and its button works again", (await worker.getAttribute("aria-disabled")) === null);
    mock.child.kill("SIGCONT");
    await session.until(
      "the page is live again by itself",
      async () => (await connection.textContent()) === "live" && (await page.locator(".alarm").textContent()) === "",
      30000,
    );
    await openRender(session, mock.base, "harbour");
    await session.until("a canvas is shown", async () => (await page.locator(".zoom").getAttribute("data-shown")) !== null);
    mock.child.kill("SIGSTOP");
    await session.until("a stop is noticed there too", async () => (await connection.textContent()) === "lost", 20000);
    mock.child.kill("SIGCONT");
    const before = await page.locator(".zoom").getAttribute("data-changed");
    await session.until(
      "and the canvas goes on by itself",
      async () => (await page.locator(".zoom").getAttribute("data-changed")) !== before,
      30000,
    );
    await cut(session, mock, connection);
  } finally {
    mock.child.kill("SIGCONT");
    mock.end();
  }
}

/** No network. */
async function cut(session, mock, connection) {
  const { page } = session;
  session.expected = /ERR_INTERNET_DISCONNECTED|Failed to load resource/;
  await page.goto(mock.base);
  await session.until("the page is live before the network goes", async () => (await connection.textContent()) === "live");
  await session.network(CUT);
  await page.locator('.worker[data-name="rack-3"] [data-action=disable]').click();
  await session.until(
    "an action without a network says so",
    () => session.noted("does not answer"),
    20000,
  );
  await session.network(FAST);
  await session.until("the page is live once it is back", async () => (await connection.textContent()) === "live", 40000);
  session.expected = null;
}

const session = await Session.open(out);
const mock = await startMock();
session.servers.add(new URL(mock.base).origin);
try {
  session.expected = /Failed to load resource/;
  await loads(session, mock);
  session.expected = null;
  await navigation(session, mock);
  await replaced(session);
  await errors(session, mock);
  await silence(session);
} catch (error) {
  session.check(`the walk through the faults: ${error.stack}`, false);
  await session.shot("failure").catch(() => {});
} finally {
  mock.end();
}
process.exit((await session.close()) ? 0 : 1);
