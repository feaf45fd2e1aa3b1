// Loads the vendored OpenSeadragon, a classic script, when the first picture is opened.

let loading = null;

/** Fails when the script cannot be had; who asks again tries again. */
export function loadOpenSeadragon() {
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = "/assets/vendor/openseadragon/openseadragon.min.js";
    script.addEventListener("load", () => resolve(globalThis.OpenSeadragon));
    script.addEventListener("error", () => {
      loading = null;
      script.remove();
      reject(new Error("the viewer could not be loaded"));
    });
    document.head.append(script);
  });
  return loading;
}
