// What every page has: the bar at the top, a place for the page, and the note that the connection is lost.

import { h, setText } from "./dom.js";
import { icon } from "./icons.js";
import { bindKeys, showHelp } from "./keys.js";
import { themeButton } from "./theme.js";

/** `{bar, main, setStatus, setVersion}`; `heading` goes into the bar's middle. */
export function makeShell(app, home) {
  const version = h("span", { class: "version" });
  const heading = h("div", { class: "heading" });
  const brand = h(
    home ? "a" : "span",
    { class: "brand", href: home, "aria-label": home && "gigasmith: all renders" },
    h("span", { class: "mark", "aria-hidden": "true" }),
    h("span", {}, "gigasmith"),
  );
  const connection = h("span", { class: "connection", hidden: true });
  const help = h(
    "button",
    {
      type: "button",
      class: "plain icon-only",
      "aria-label": "Keyboard help",
      title: "Keyboard help (?)",
      on: { click: showHelp },
    },
    icon("help"),
  );
  const bar = h("header", { class: "bar" }, brand, heading, connection, version, themeButton(), help);
  const alarm = h("div", { class: "alarm", role: "status", "aria-live": "polite" });
  const main = h("main", { class: "page", tabindex: "-1" });
  app.replaceChildren(bar, alarm, main);
  bindKeys([{ keys: ["?"], run: showHelp }]);

  let timer = null;
  function setStatus(status) {
    connection.hidden = false;
    connection.className = `connection ${status}`;
    setText(connection, { connecting: "connecting", live: "live", lost: "lost" }[status]);
    clearTimeout(timer);
    if (status !== "lost") return setText(alarm, "");
    // A server that restarts is back within a moment: no alarm for that.
    timer = setTimeout(() => setText(alarm, "The coordinator does not answer. What you see may be old; trying again…"), 800);
  }
  return { heading, main, setStatus, setVersion: (text) => setText(version, text.replace(/^gigasmith /, "")) };
}
