// A browser page under observation: what it asks for, what it complains about, and what was found to hold.

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

/** A tile of a version that was replaced while the request was under way is gone, and the browser logs that by itself. */
const isOldTile = (message) =>
  (/Failed to load resource/.test(message.text()) && /\/tiles\//.test(message.location().url)) ||
  /^Tile .* failed to load.* replaced$/.test(message.text());
/** So is a wrong token. */
const isRefusal = (message) => /status of 401/.test(message.text()) && /\/api\/login/.test(message.location().url);

export class Session {
  static async open(out) {
    mkdirSync(out, { recursive: true });
    const browser = await chromium.launch({ executablePath: findChromium(), args: ["--no-sandbox"] });
    const page = await browser.newPage({ viewport: { width: 1440, height: 900 }, colorScheme: "light" });
    return new Session(browser, page, out);
  }

  constructor(browser, page, out) {
    Object.assign(this, { browser, page, out, requests: [], everything: [], complaints: [], failed: 0, passed: 0 });
    const origin = (url) => /^https?:/.test(url);
    page.on("request", (request) => {
      if (!origin(request.url())) return;
      this.requests.push(request.url());
      this.everything.push(request.url());
    });
    page.on("console", (message) => {
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

  shot(name) {
    return this.page.screenshot({ path: join(this.out, `${name}.png`) });
  }

  /** Whether all held, including that nothing complained and nothing was asked of another server. */
  async close() {
    const base = new URL(this.everything[0] ?? "http://nowhere").origin;
    const foreign = this.everything.filter((url) => new URL(url).origin !== base);
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
