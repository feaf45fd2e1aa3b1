// The icons: 20 x 20 line drawings, made as SVG nodes.

const PATHS = {
  plus: "M10 4v12M4 10h12",
  minus: "M4 10h12",
  fit: "M3 7V3h4M13 3h4v4M17 13v4h-4M7 17H3v-4M7 8h6v4H7z",
  actual: "M4 6l2-1v10M14 6l2-1v10M10 8v.01M10 12.500v.01",
  overlay: "M3 3h14v14H3zM3 10h14M10 3v14",
  map: "M3 4h14v12H3zM10.500 9.500h4v4h-4z",
  full: "M3 8V3h5M12 3h5v5M17 12v5h-5M8 17H3v-5",
  info: "M10 9v5M10 6v.01M10 17.500a7.500 7.500 0 1 0 0-15 7.500 7.500 0 0 0 0 15z",
  help: "M7.700 7.700a2.400 2.400 0 1 1 3.600 2c-.900.500-1.300 1-1.300 1.900M10 14v.01M10 17.500a7.500 7.500 0 1 0 0-15 7.500 7.500 0 0 0 0 15z",
  pause: "M7 4v12M13 4v12",
  play: "M6 4l10 6-10 6z",
  stop: "M5 5l10 10M15 5L5 15",
  close: "M5 5l10 10M15 5L5 15",
  back: "M12 4l-6 6 6 6",
  download: "M10 3v10M6 9l4 4 4-4M4 17h12",
  copy: "M7 7V3h10v10h-4M3 7h10v10H3z",
  warning: "M10 3l8 14H2zM10 8.500v4M10 14.800v.01",
  light:
    "M10 13.500a3.500 3.500 0 1 0 0-7 3.500 3.500 0 0 0 0 7zM10 2v1.500M10 16.500V18M2 10h1.500M16.500 10H18M4.300 4.300l1.100 1.100M14.600 14.600l1.100 1.100M4.300 15.700l1.100-1.100M14.600 5.400l1.100-1.100",
  dark: "M16.500 12A7 7 0 0 1 8 3.500 7 7 0 1 0 16.500 12z",
};

const SVG = "http://www.w3.org/2000/svg";

/** An icon, hidden from screen readers: whoever shows it says in words what it means. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** Replaces the icon inside a button. */
export function setIcon(button, name) {
  if (button.dataset.icon === name) return;
  button.dataset.icon = name;
  button.querySelector("svg")?.remove();
  button.prepend(icon(name));
}
