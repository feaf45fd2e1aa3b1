// What pages say and let people do in the cases that are not everyday's, and what they are to those who see or use
// them in other ways.
//
//   node details.mjs OUT_DIR
//
// Starts the mock by itself. Screenshots go to OUT_DIR. Exit code 0 when everything holds, 1 otherwise.

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { Session, settle, startMock } from "./session.mjs";

const [out] = process.argv.slice(2);
if (!out) {
  console.error("usage: node details.mjs OUT_DIR");
  process.exit(1);
}
const DESKTOP = { width: 1440, height: 900 };
const PHONE = { width: 390, height: 844 };
/** A window of 1280 x 1024 at 400 %. */
const ENLARGED = { width: 320, height: 256 };
const AXE = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

const row = (page, id) => page.locator(`.render[data-id="${id}"]`);
const focused = (page) => page.evaluate(() => document.activeElement?.outerHTML.slice(0, 80) ?? "");
const copied = (page) => page.evaluate(() => navigator.clipboard.readText());

async function goTo(session, base, hash = "") {
  await session.page.goto("about:blank");
  await session.page.goto(`${base}${hash}`);
  await session.page.locator(hash ? ".panel .state" : ".render").first().waitFor();
}

/** Findings of axe-core, the serious and the moderate alike. */
async function accessible(session, name) {
  const { page } = session;
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() =>
    // eslint-disable-next-line no-undef
    axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] }),
  );
  const said = violations.map(({ id, nodes }) => `${id}: ${nodes[0].html.slice(0, 100)}`).join("; ");
  session.check(`${name}: accessible as far as axe-core can tell ${said}`, violations.length === 0);
}

/** Every state has the buttons for what can be done in it. */
async function actions(session, base) {
  const { page } = session;
  await goTo(session, base);
  const visible = async (id) => {
    const buttons = row(page, id).locator("[data-action]:visible");
    return (await buttons.evaluateAll((all) => all.map((one) => one.dataset.action))).join();
  };
  for (const [id, wanted] of [
    ["old-mill", "pause"],
    ["test-3", ""],
    ["dunes", "fetch"],
    ["hills", "download"],
    ["valley-at-noon", "pause,cancel"],
  ])
    session.check(`${id} has the buttons [${wanted}]`, (await visible(id)) === wanted);
  session.check(
    "a failed render can be continued",
    (await row(page, "old-mill").locator("[data-action=pause]").textContent()) === "Continue",
  );
  await goTo(session, base, "#/renders/old-mill");
  const button = page.locator(".panel [data-action=pause]");
  await session.until("on its page too", async () => (await button.textContent()) === "Continue");
  const colours = await page.evaluate(() =>
    [".reason", ".state"].map((name) => getComputedStyle(document.querySelector(`.panel ${name}`)).color),
  );
  session.check(`why it failed has the colour of failure ${colours}`, colours[0] === colours[1]);
  await button.click();
  await session.until("and is", async () => (await page.locator(".panel .state").textContent()) === "Running");
  session.check("the focus stays on the button", (await focused(page)).includes('data-action="pause"'));

  await goTo(session, base);
  await row(page, "dunes").locator("[data-action=fetch]").click();
  const command = page.locator("dialog[open] code");
  await session.until("Deep Zoom's command is shown", () => command.isVisible());
  session.check("it fetches this one", /^gigasmith fetch dunes -o dunes\.dzi --coordinator http/.test(await command.textContent()));
  await session.shot("fetch");
  await page.locator("dialog[open] [data-action=copy]").click();
  session.check("and can be copied", (await copied(page)) === (await command.textContent()));
  await page.keyboard.press("Escape");
  const away = row(page, "glacier").locator(".state");
  session.check("a store that is away is said", (await away.textContent()) === "Waiting for the store");
  const ended = await page.locator("#ended > li").evaluateAll((all) => all.map((one) => one.dataset.id));
  session.check(`what ended last comes first: ${ended}`, ended[0] === "hills");
}

/** Where the focus is after what had it has gone. */
async function focus(session, base) {
  const { page } = session;
  await goTo(session, base);
  const link = row(page, "harbour").locator("a.name");
  await link.focus();
  await page.keyboard.press("Enter");
  await page.locator(".panel .state").waitFor();
  session.check("a page that is opened has the focus", (await focused(page)).startsWith("<main"));
  await page.locator(".panel [data-action=cancel]").click();
  await page.locator("dialog[open] button[value=yes]").click();
  await session.until("the render is cancelled", async () => (await page.locator(".panel .state").textContent()) === "Cancelled");
  session.check(`then its name has the focus: ${await focused(page)}`, (await focused(page)).startsWith("<h2"));
  session.check("and nobody is at work there", await page.locator(".legend").isHidden());
  await goTo(session, base);
  await row(page, "cliffs").locator("[data-action=cancel]").click();
  await page.locator("dialog[open] button[value=yes]").click();
  const moved = page.locator('#ended [data-id="cliffs"]');
  await session.until("in the list it moves to those that ended", () => moved.isVisible());
  await settle(300);
  const held = await page.evaluate(() => document.activeElement?.closest("li")?.dataset.id ?? "");
  session.check(`and takes the focus along: ${held}`, held === "cliffs");
}

/** Texts and names from outside. */
async function odd(session) {
  const { page } = session;
  const mock = await startMock("--odd");
  session.servers.add(new URL(mock.base).origin);
  try {
    await goTo(session, mock.base);
    const workers = page.locator(".worker");
    const names = await workers.evaluateAll((all) => all.map((one) => one.dataset.name));
    session.check(`workers with odd names are listed (${names.length})`, names.length === 8);
    for (let at = 0; at < names.length; at += 1) {
      const one = workers.nth(at);
      await one.locator("[data-action=disable]").click();
      await session.until(
        `${JSON.stringify(names[at]).slice(0, 30)} can be disabled`,
        async () => (await one.getAttribute("data-state")) === "disabled",
        5000,
      );
    }
    session.check("no note of a failure", (await page.locator(".note.bad").count()) === 0);
    const first = await workers.first().locator(".line.dim").textContent();
    session.check(`nothing is said twice of a worker: ${first}`, first === "cpu/f32 · pocket");
    const reversed = names.findIndex((name) => name.startsWith("\u202e"));
    session.check(
      "what turns text around is shown as what it is",
      (await workers.nth(reversed).locator(".name").textContent()) === "⟨U+202E⟩gpu",
    );
    await session.shot("odd");
    await goTo(session, mock.base, "#/renders/odd");
    const prompt = page.locator(".panel .prompt");
    await session.until("a long prompt is there to its end", async () => (await prompt.textContent()).endsWith("THE END"));
    const shown = await prompt.evaluate((element) => [element.textContent, getComputedStyle(element).whiteSpace]);
    session.check("with its lines", shown[0].startsWith("first line\nsecond line") && shown[1].startsWith("pre"));
    session.check("and what it hides", shown[0].includes("⟨U+202E⟩gnp.exe⟨U+202C⟩") && shown[0].includes("<i>markup</i>"));
    await page.getByRole("button", { name: "Copy prompt" }).click();
    await session.until("the prompt is copied as it is", async () => (await copied(page)).includes("\u202egnp.exe"));
    await page.getByRole("button", { name: "Copy seed" }).click();
    await session.until("so is the seed", async () => (await copied(page)) === "1");
    session.check("all settings are there", (await page.locator(".settings .text").count()) === 2);
    await session.shot("odd-render");
  } finally {
    mock.end();
  }
}

async function login(session) {
  const { page } = session;
  const mock = await startMock("--token", "a-long-shared-secret");
  session.servers.add(new URL(mock.base).origin);
  try {
    await page.goto(mock.base);
    await page.locator("#token").fill("a-long-shared-secret");
    await accessible(session, "login");
    await page.keyboard.press("Enter");
    await page.locator(".render").first().waitFor();
    session.check("after the login the page has the focus", (await focused(page)).startsWith("<main"));
  } finally {
    mock.end();
  }
}

/** Other windows, other colours, other senses. */
async function ways(session, base) {
  const { page } = session;
  for (const [hash, name] of [
    ["", "list"],
    ["#/renders/hills", "render"],
    ["#/renders/nowhere", "unknown render"],
  ]) {
    for (const [size, kind] of [
      [DESKTOP, "desktop"],
      [PHONE, "phone"],
    ]) {
      await page.setViewportSize(size);
      await page.goto("about:blank");
      await page.goto(`${base}${hash}`);
      await page.locator("h1").first().waitFor({ state: "attached" });
      await settle(1500);
      await accessible(session, `${name}, ${kind}`);
      const small = await page
        .locator("a[href]:visible, button:visible, summary:visible")
        .evaluateAll((all) =>
          all.map((one) => [one.textContent, one.getBoundingClientRect()]).filter(([, box]) => box.width < 24 || box.height < 24),
        );
      session.check(`${name}, ${kind}: everything to be pressed has 24 pixels ${JSON.stringify(small)}`, small.length === 0);
    }
  }
  await page.setViewportSize(DESKTOP);
  await goTo(session, base, "#/renders/valley-at-noon");
  await goTo(session, base, "#/renders/hills");
  await session.until("a screen reader hears how far the picture is", async () =>
    /^The canvas of hills: Done, 100%/.test(await page.locator(".openseadragon-canvas").getAttribute("aria-label")),
  );
  await page.setViewportSize(ENLARGED);
  await settle(800);
  const { stage, wide } = await page.evaluate(() => ({
    stage: document.querySelector(".stage").getBoundingClientRect().height,
    wide: document.scrollingElement.scrollWidth,
  }));
  session.check(`at 400 % the picture leaves room for the rest (${stage} of 256)`, stage <= 180 && wide <= 320);
  await session.shot("enlarged");
  await page.setViewportSize(DESKTOP);
  await page.emulateMedia({ forcedColors: "active" });
  await goTo(session, base);
  await settle(500);
  const fill = row(page, "valley-at-noon").locator(".fill").first();
  const [inside, around] = await fill.evaluate((one) => [
    getComputedStyle(one).backgroundColor,
    getComputedStyle(one.parentElement).backgroundColor,
  ]);
  session.check(`progress is seen in forced colours (${inside} on ${around})`, inside !== around);
  await session.shot("forced-list");
  await goTo(session, base, "#/renders/hills");
  await settle(1500);
  await session.shot("forced-render");
  await page.emulateMedia({ forcedColors: "none" });
}

const session = await Session.open(out);
// The mock has no canvas for most of its renders, and ends while pages listen to it.
session.expected = /status of 404|ERR_INCOMPLETE_CHUNKED_ENCODING|ERR_CONNECTION_REFUSED/;
const mock = await startMock("--pace", "5");
session.servers.add(new URL(mock.base).origin);
await session.page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
try {
  await ways(session, mock.base);
  await actions(session, mock.base);
  await focus(session, mock.base);
  await odd(session);
  await login(session);
} catch (error) {
  session.check(`the walk through the details: ${error.stack}`, false);
  await session.shot("failure").catch(() => {});
} finally {
  mock.end();
}
process.exit((await session.close()) ? 0 : 1);
