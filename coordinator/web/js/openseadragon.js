// Loads the vendored OpenSeadragon, a classic script, when the first picture is opened.

let loading = null;

export function loadOpenSeadragon() {
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = "/assets/vendor/openseadragon/openseadragon.min.js";
    script.addEventListener("load", () => resolve(globalThis.OpenSeadragon));
    script.addEventListener("error", () => reject(new Error("the viewer could not be loaded; reload the page")));
    document.head.append(script);
  });
  return loading;
}
