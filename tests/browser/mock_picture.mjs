// A landscape as a function of place, in tiles, as PNG: what the mock shows instead of a render.

import { deflateSync } from "node:zlib";

const CRC = Int32Array.from({ length: 256 }, (_, n) => {
  let c = n;
  for (let k = 0; k < 8; k += 1) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1;
  return c;
});

function chunk(type, data) {
  const body = Buffer.concat([Buffer.from(type, "latin1"), data]);
  let crc = -1;
  for (const byte of body) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  const out = Buffer.alloc(body.length + 8);
  out.writeUInt32BE(data.length, 0);
  body.copy(out, 4);
  out.writeInt32BE(~crc, body.length + 4);
  return out;
}

function png(width, height, rgb) {
  const rows = Buffer.alloc(height * (width * 3 + 1));
  for (let y = 0; y < height; y += 1) rgb.copy(rows, y * (width * 3 + 1) + 1, y * width * 3, (y + 1) * width * 3);
  const head = Buffer.alloc(13);
  head.writeUInt32BE(width, 0);
  head.writeUInt32BE(height, 4);
  head.set([8, 2, 0, 0, 0], 8);
  return Buffer.concat([
    Buffer.from("89504e470d0a1a0a", "hex"),
    chunk("IHDR", head),
    chunk("IDAT", deflateSync(rows, { level: 1 })),
    chunk("IEND", Buffer.alloc(0)),
  ]);
}

function hash(x, y) {
  let h = Math.imul(x, 374761393) + Math.imul(y, 668265263);
  h = Math.imul(h ^ (h >>> 13), 1274126177);
  return ((h ^ (h >>> 16)) >>> 0) / 4294967296;
}

function smooth(x, y) {
  const [i, j] = [Math.floor(x), Math.floor(y)];
  const [u, v] = [x - i, y - j];
  const [s, t] = [u * u * (3 - 2 * u), v * v * (3 - 2 * v)];
  return (
    (hash(i, j) * (1 - s) + hash(i + 1, j) * s) * (1 - t) + (hash(i, j + 1) * (1 - s) + hash(i + 1, j + 1) * s) * t
  );
}

/** The colour at a place, 0 to 1 each way; `detail` is the smallest feature that can be seen. */
function landscape(u, v, detail) {
  const sun = Math.hypot(u - 0.68, v - 0.3);
  let [r, g, b] = [250 - 120 * (0.6 - v), 176 + 30 * (0.5 - v), 120 + 190 * Math.max(0, 0.5 - v)];
  if (sun < 0.055) [r, g, b] = [255, 244, 205];
  else {
    const glow = 90 * Math.exp(-sun * 7);
    [r, g] = [r + glow, g + glow * 0.6];
  }
  for (let layer = 0; layer < 5; layer += 1) {
    const ridge =
      0.5 +
      0.1 * layer +
      0.07 * (smooth(u * (3 + layer * 1.7) + layer * 9, layer) - 0.5) +
      0.03 * (smooth(u * 21 + layer * 5, layer) - 0.5);
    if (v < ridge) break;
    const depth = 1 - layer / 6;
    [r, g, b] = [46 + 92 * depth, 78 + 66 * depth, 62 + 88 * depth];
    let shade = 0;
    for (let f = 16, size = 1; f < 1 / detail && f < 9000; f *= 4, size *= 0.8)
      shade += size * (smooth(u * f + layer * 31, v * f * 2) - 0.5);
    [r, g, b] = [r + 34 * shade, g + 44 * shade, b + 26 * shade];
  }
  return [r, g, b];
}

/** One tile. `noise(u, v)`: how much of it is still noise, 0 to 1. */
export function tile({ width, height, tile_size: side, max_level: most }, level, x, y, noise = () => 0) {
  const scale = 2 ** (most - level);
  const [wide, high] = [Math.ceil(width / scale), Math.ceil(height / scale)];
  const [w, h] = [Math.min(side, wide - x * side), Math.min(side, high - y * side)];
  if (level < 0 || level > most || x < 0 || y < 0 || w <= 0 || h <= 0) return null;
  const rgb = Buffer.alloc(w * h * 3);
  const longest = Math.max(width, height);
  for (let j = 0; j < h; j += 1) {
    for (let i = 0; i < w; i += 1) {
      const [px, py] = [(x * side + i + 0.5) * scale, (y * side + j + 0.5) * scale];
      const [u, v] = [px / width, py / height];
      const colour = landscape(u, v, scale / longest);
      const wild = noise(u, v);
      for (let c = 0; c < 3; c += 1) {
        const grain =
          wild > 0 ? 255 * hash(Math.floor(px / Math.max(8, scale)) * 3 + c, Math.floor(py / Math.max(8, scale))) : 0;
        rgb[(j * w + i) * 3 + c] = Math.min(255, Math.max(0, colour[c] * (1 - wild) + grain * wild));
      }
    }
  }
  return png(w, h, rgb);
}
