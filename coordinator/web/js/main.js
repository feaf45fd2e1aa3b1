// Starts the pages: asks the server what it is, shows the login form where one is needed, and follows the address.

import { get, hooks } from "./api.js";
import { applyTheme } from "./theme.js";
import { showFarm } from "./farm.js";
import { h } from "./dom.js";
import { Farm } from "./live.js";
import { login } from "./login.js";
import { showPicture } from "./picture.js";
import { showRender } from "./render_page.js";
import { makeShell } from "./shell.js";

const app = document.querySelector("#app");

function startFarm(version) {
  const shell = makeShell(app, "#/");
  shell.setVersion(version);
  const farm = new Farm();
  farm.follow(({ status, state }) => {
    shell.setStatus(status);
    if (state) shell.setVersion(state.version);
  });
  let end = null;
  let id = null;
  function wanted() {
    try {
      return decodeURIComponent(/^#\/renders\/([^/]+)$/.exec(location.hash)[1]);
    } catch {
      // No render, or nothing that could name one.
      return null;
    }
  }
  function route() {
    const from = id;
    end?.();
    id = wanted();
    end = id === null ? showFarm(shell, farm, from) : showRender(shell, farm, id);
    // Where what had the focus is gone, the page that came has it: a screen reader goes on from there.
    if (document.activeElement === document.body) shell.main.focus();
  }
  addEventListener("hashchange", route);
  route();
  hooks.loginNeeded = () => location.reload();
}

async function start() {
  applyTheme();
  const mode = await get("/api/mode");
  if (mode.login) await login(app);
  if (mode.mode === "farm") return startFarm(mode.version);
  const shell = makeShell(app, null);
  shell.setVersion(mode.version);
  return showPicture(shell);
}

start().catch((error) =>
  app.replaceChildren(
    h(
      "main",
      { class: "login" },
      h(
        "div",
        {},
        h("p", { class: "error", role: "alert" }, `These pages cannot start: ${error.message}.`),
        h("button", { type: "button", on: { click: () => location.reload() } }, "Try again"),
      ),
    ),
  ),
);
