// A browser page under observation: what it asks for, what it complains about, and what was found to hold.

import { spawn } from "node:child_process";
import { accessSync, constants, mkdirSync } from "node:fs";
import { delimiter, join } from "node:path";
import { chromium } from "playwright-core";

export const settle = (milliseconds) =>
  new Promise((resolve) => {
    setTimeout(resolve, milliseconds);
  });

function findChromium() {
  if (process.env.CHROMIUM) return process.env.CHROMIUM;
  for (const name of ["chromium", "chromium-browser", "google-chrome"]) {
    for (const folder of (process.env.PATH ?? "").split(delimiter)) {
      try {
        accessSync(join(folder, name), constants.X_OK);
        return join(folder, name);
      } catch {
        // Not here.
      }
    }
  }
  throw new Error("no Chromium on the PATH: install chromium, or set CHROMIUM to its path");
}

/** The mock as a process of its own, on a free port: `{base, child, tell(how), end()}`. */
export async function startMock(...args) {
  const program = join(import.meta.dirname, "mock.mjs");
  const child = spawn(process.execPath, [program, "--port", "0", ...args], { stdio: ["ignore", "pipe", "inherit"] });
  const base = await new Promise((resolve, reject) => {
    child.stdout.once("data", (said) => resolve(said.toString().trim()));
    child.once("exit", (code) => reject(new Error(`the mock ended with ${code}`)));
  });
  const tell = (how) => fetch(`${base}mock/tiles?how=${how}`, { method: "POST" });
  return { base, child, tell, end: () => child.kill("SIGKILL") };
}

/** Options of the browser's network, as the DevTools protocol has them. */
export const SLOW = { offline: false, latency: 400, downloadThroughput: 200e3, uploadThroughput: 200e3 };
export const FAST = { offline: false, latency: 0, downloadThroughput: -1, uploadThroughput: -1 };
export const CUT = { ...FAST, offline: true };

/** A tile of a version that was replaced while the request was under way is gone, and the browser logs that by itself. */
const isOldTile = (message) =>
  (/Failed to load resource/.test(message.text()) && /\/tiles\//.test(message.location().url)) ||
  /^Tile .* failed to load.* cancelled$/.test(message.text());
/** So is a wrong token. */
const isRefusal = (message) => /status of 401/.test(message.text()) && /\/api\/login/.test(message.location().url);

export class Session {
  static async open(out) {
    mkdirSync(out, { recursive: true });
    const browser = await chromium.launch({ executablePath: findChromium(), args: ["--no-sandbox"] });
    const page = await browser.newPage({ viewport: { width: 1440, height: 900 }, colorScheme: "light" });
    // Notes go after a few seconds; a test may look later.
    await page.addInitScript(() => {
      window.notes = [];
      new MutationObserver((changes) => {
        const added = changes.flatMap(({ addedNodes }) => [...addedNodes]);
        for (const node of added) if (node.classList?.contains("note")) window.notes.push(node.textContent);
      }).observe(document, { childList: true, subtree: true });
    });
    return new Session(browser, page, out);
  }

  constructor(browser, page, out) {
    Object.assign(this, { browser, page, out, requests: [], everything: [], complaints: [], failed: 0, passed: 0 });
    // What a test brings about itself is no complaint: it sets this to a pattern.
    this.expected = null;
    // Where the pages come from; the first one that is asked unless given.
    this.servers = new Set();
    const origin = (url) => /^https?:/.test(url);
    page.on("request", (request) => {
      if (!origin(request.url())) return;
      this.requests.push(request.url());
      this.everything.push(request.url());
    });
    page.on("console", (message) => {
      if (this.expected?.test(message.text())) return;
      if (["error", "warning"].includes(message.type()) && !isOldTile(message) && !isRefusal(message))
        this.complaints.push(`${message.text()} (${message.location().url})`);
    });
    page.on("pageerror", (error) => this.complaints.push(error.stack ?? error.message));
  }

  check(name, holds) {
    if (holds) this.passed += 1;
    else this.failed += 1;
    console.log(`${holds ? "ok    " : "FAILED"} ${name}`);
  }

  /** Waits until something holds. */
  async until(name, holds, within = 10000) {
    const end = Date.now() + within;
    const look = () =>
      Promise.resolve()
        .then(holds)
        .catch(() => false);
    let holding = await look();
    while (!holding && Date.now() < end) {
      await settle(100);
      holding = await look();
    }
    this.check(holding ? name : `${name} (not within ${within / 1000} s)`, holding);
  }

  /** Makes the network what it is told to be. */
  async network(conditions) {
    this.protocol ??= await this.page.context().newCDPSession(this.page);
    await this.protocol.send("Network.emulateNetworkConditions", conditions);
  }

  /** Whether a note with this text was shown since the page was loaded. */
  noted(text) {
    return this.page.evaluate((wanted) => window.notes.some((note) => note.includes(wanted)), text);
  }

  shot(name) {
    return this.page.screenshot({ path: join(this.out, `${name}.png`) });
  }

  /** Whether all held, including that nothing complained and nothing was asked of another server. */
  async close() {
    if (this.servers.size === 0) this.servers.add(new URL(this.everything[0] ?? "http://nowhere").origin);
    const foreign = this.everything.filter((url) => !this.servers.has(new URL(url).origin)).slice(0, 5);
    this.check(`nothing is asked of other servers ${foreign.join(" ")}`, foreign.length === 0);
    this.check(
      `no errors, warnings or violations of the content policy ${this.complaints.slice(0, 5).join("; ")}`,
      this.complaints.length === 0,
    );
    await this.browser.close();
    console.log(`${this.passed} hold, ${this.failed} do not`);
    return this.failed === 0;
  }
}
