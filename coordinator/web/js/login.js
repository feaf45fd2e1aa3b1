// The form that asks for the farm's token.

import { post } from "./api.js";
import { h, setOptional } from "./dom.js";

/** Fills `place` with the form and resolves once the token was accepted. */
export function login(place) {
  return new Promise((resolve) => {
    const field = h("input", {
      type: "password",
      id: "token",
      name: "token",
      required: true,
      autocomplete: "current-password",
      "aria-describedby": "login-hint login-error",
    });
    const button = h("button", { class: "primary" }, "Enter");
    const error = h("p", { class: "error", id: "login-error", role: "alert", hidden: true });
    async function submit(event) {
      event.preventDefault();
      button.disabled = true;
      setOptional(error, "");
      try {
        await post("/api/login", { token: field.value.trim() });
        resolve();
      } catch (failure) {
        setOptional(error, failure.message);
        field.select();
      } finally {
        button.disabled = false;
      }
    }
    place.replaceChildren(
      h(
        "main",
        { class: "login" },
        h(
          "form",
          { on: { submit } },
          h("h1", {}, "gigasmith"),
          h("label", { for: "token" }, "Token"),
          field,
          h(
            "p",
            { class: "dim", id: "login-hint" },
            "The content of the file that the coordinator was given as ",
            h("code", {}, "--token-file"),
            ".",
          ),
          error,
          button,
        ),
      ),
    );
    field.focus();
  });
}
