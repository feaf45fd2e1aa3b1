// Drawn over a canvas that is being rendered: how far each cell is, and who works where.

import { h } from "./dom.js";

/** Screen sizes from which a cell has a line around it, and a number in it. */
const LINES_FROM = 22;
const NUMBERS_FROM = 44;
/** How dark the cell that is furthest behind gets. */
const DARKEST = 0.38;

export class Overlay {
  constructor(zoom, colourOf) {
    Object.assign(this, { zoom, colourOf, canvas: null, shading: document.createElement("canvas"), pending: 0 });
    this.element = h("canvas", { class: "overlay", "aria-hidden": "true" });
  }

  /** Takes a Canvas from the server. */
  update(spec) {
    this.canvas = spec;
    this.shade(spec);
    this.draw();
  }

  /** One pixel a cell; enlarging it is the browser's work, however many cells there are. */
  shade({ cells, steps }) {
    if (!cells) return;
    const { columns, rows, done } = cells;
    this.shading.width = columns;
    this.shading.height = rows;
    const context = this.shading.getContext("2d");
    const image = context.createImageData(columns, rows);
    // The cells of a running stage are a few steps apart: darkness tells who is behind the furthest.
    const most = done.reduce((a, b) => Math.max(a, b), 0);
    const least = done.reduce((a, b) => Math.min(a, b), steps);
    const range = Math.max(most - least, Math.min(4, steps));
    done.forEach((value, index) => {
      image.data[index * 4 + 3] = Math.round((255 * DARKEST * (most - value)) / range);
    });
    context.putImageData(image, 0, 0);
  }

  /** Draws at the next frame. */
  draw() {
    if (this.pending || this.element.hidden) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = 0;
      this.paint();
    });
  }

  paint() {
    const { clientWidth: width, clientHeight: height } = this.element;
    const ratio = devicePixelRatio;
    const [across, down] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.element.width !== across) this.element.width = across;
    if (this.element.height !== down) this.element.height = down;
    const context = this.element.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    // While a new picture is on its way the old one is still there, and these marks are not its own.
    if (!this.canvas || !this.zoom.item || this.zoom.tiles.spec.version !== this.canvas.version) return;
    const frame = this.zoom.frame;
    if (this.canvas.cells) this.paintCells(context, frame, width, height);
    for (const patch of this.canvas.in_flight ?? []) this.paintPatch(context, frame, patch);
  }

  paintCells(context, frame, width, height) {
    const { columns, rows, side, done } = this.canvas.cells;
    const cell = side * frame.scale;
    const { left, top } = frame;
    const [right, bottom] = [left + frame.width * frame.scale, top + frame.height * frame.scale];
    context.save();
    context.beginPath();
    context.rect(left, top, right - left, bottom - top);
    context.clip();
    context.imageSmoothingEnabled = false;
    context.drawImage(this.shading, left, top, columns * cell, rows * cell);
    const first = (edge) => Math.max(0, Math.floor(-edge / cell));
    const last = (edge, size, count) => Math.min(count, Math.ceil((size - edge) / cell));
    const [fromX, toX, fromY, toY] = [first(left), last(left, width, columns), first(top), last(top, height, rows)];
    if (cell >= LINES_FROM) {
      context.beginPath();
      for (let x = fromX; x <= toX; x += 1) {
        context.moveTo(left + x * cell, Math.max(top, 0));
        context.lineTo(left + x * cell, Math.min(bottom, height));
      }
      for (let y = fromY; y <= toY; y += 1) {
        context.moveTo(Math.max(left, 0), top + y * cell);
        context.lineTo(Math.min(right, width), top + y * cell);
      }
      context.strokeStyle = "rgb(255 255 255 / 0.16)";
      context.lineWidth = 1;
      context.stroke();
    }
    if (cell >= NUMBERS_FROM && this.canvas.kind === "latents") {
      context.font = "600 11px system-ui, sans-serif";
      context.textAlign = "right";
      context.textBaseline = "bottom";
      context.lineWidth = 3;
      context.lineJoin = "round";
      context.strokeStyle = "rgb(0 0 0 / 0.6)";
      context.fillStyle = "rgb(255 255 255 / 0.95)";
      for (let y = fromY; y < toY; y += 1) {
        for (let x = fromX; x < toX; x += 1) {
          const [text, at, under] = [
            String(done[y * columns + x]),
            left + (x + 1) * cell - 5,
            top + (y + 1) * cell - 4,
          ];
          context.strokeText(text, at, under);
          context.fillText(text, at, under);
        }
      }
    }
    context.restore();
  }

  paintPatch(context, { left, top, scale }, patch) {
    const [x, y] = [left + patch.left * scale, top + patch.top * scale];
    const [width, height] = [patch.width * scale, patch.height * scale];
    const colour = patch.worker ? this.colourOf(patch.worker) : "rgb(235 235 235)";
    context.setLineDash(patch.worker ? [] : [5, 4]);
    // A dark line beneath keeps the colour visible on any picture.
    context.strokeStyle = "rgb(0 0 0 / 0.65)";
    context.lineWidth = patch.worker ? 4 : 3;
    context.strokeRect(x + 1.5, y + 1.5, width - 3, height - 3);
    context.strokeStyle = colour;
    context.lineWidth = patch.worker ? 2 : 1;
    context.strokeRect(x + 1.5, y + 1.5, width - 3, height - 3);
    context.setLineDash([]);
    if (!patch.worker || height < 40) return;
    context.font = "600 11px system-ui, sans-serif";
    context.textAlign = "left";
    context.textBaseline = "middle";
    const step = this.canvas.kind === "latents" ? ` · step ${patch.step}` : "";
    let text = patch.worker + step;
    let wide = context.measureText(text).width + 10;
    if (wide > width - 3) {
      text = patch.worker;
      wide = context.measureText(text).width + 10;
    }
    if (wide > width - 3) return;
    context.fillStyle = colour;
    context.fillRect(x + 0.5, y + 0.5, wide, 17);
    context.fillStyle = "rgb(0 0 0 / 0.9)";
    context.fillText(text, x + 5.5, y + 9.5);
  }
}
