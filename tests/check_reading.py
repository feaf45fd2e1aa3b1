#!/usr/bin/env python3
"""Writes pictures with programs that are not ours, and compares what ours reads with what they mean.

    check_reading.py PROGRAM

Each file shows four colours in quadrants; `PROGRAM view` opens it, and the means of the quadrants of its
largest tile (a JPEG of quality 90) must lie within 3 levels of the colours, or of what LittleCMS (in libvips)
makes of them. Files that were cut in half, and formats that are not read, must be refused with exit code 4
and their name. Needs numpy, pillow, tifffile, imagecodecs, pyvips. Exits with 1 when anything differs.
"""

import io
import json
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

import numpy as np
import pyvips
import tifffile
from PIL import Image

COLOURS = np.array([[[200, 30, 30], [30, 160, 30]], [[30, 30, 200], [230, 230, 230]]], np.uint8)
TOLERANCE = 3
# JPEG with colours at half resolution, ink and back, palettes: what the other program itself gets wrong.
ROUGH = 8


def quadrants(pixels):
    height, width = pixels.shape[:2]
    parts = [[pixels[y * height // 2 + 12:(y + 1) * height // 2 - 12, x * width // 2 + 12:(x + 1) * width // 2 - 12]
              for x in (0, 1)] for y in (0, 1)]
    return np.array([[part.reshape(-1, 3).mean(0) for part in row] for row in parts])


class Viewer:
    """`PROGRAM view` of a file: its largest tile, or its exit code and message."""

    def __init__(self, program, path):
        self.process = subprocess.Popen([program, "view", str(path)], stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True)
        self.line = self.process.stdout.readline()

    def tile(self):
        if not self.line:
            return None
        base = self.line.split("http://")[1].split("/")[0]
        about = json.load(urllib.request.urlopen(f"http://{base}/api/picture"))
        url = f"http://{base}/api/picture/tiles/{about['max_level']}/0_0"
        return np.asarray(Image.open(io.BytesIO(urllib.request.urlopen(url).read())).convert("RGB"))

    def close(self):
        if self.line:
            self.process.terminate()
        error = self.process.communicate()[1]
        return self.process.returncode, error.strip()


class Check:
    def __init__(self, program, folder):
        self.program, self.folder, self.failures, self.files = program, folder, 0, 0

    def wrong(self, what):
        self.failures += 1
        print(f"  WRONG: {what}")

    def means(self, name, expected=COLOURS, tolerance=TOLERANCE):
        self.files += 1
        viewer = Viewer(self.program, self.folder / name)
        tile = viewer.tile()
        _, error = viewer.close()
        if tile is None:
            return self.wrong(f"{name} is not read: {error}")
        largest = float(np.abs(quadrants(tile) - expected).max())
        print(f"  {name}: {largest:.1f}")
        if largest > tolerance:
            self.wrong(f"{name} is {quadrants(tile).round().astype(int).tolist()}")

    def refused(self, name, word=""):
        self.files += 1
        viewer = Viewer(self.program, self.folder / name)
        code, error = viewer.close()
        print(f"  {name}: {code} {error}")
        if code != 4 or name not in error or word not in error or "\n" in error:
            self.wrong(f"{name} is not refused as it should be")


def plain(check, picture, pixels):
    folder = check.folder
    picture.save(folder / "plain.png")
    picture.save(folder / "interlaced.bmp")
    picture.save(folder / "plain.gif")
    picture.save(folder / "progressive.jpg", quality=95, progressive=True)
    picture.save(folder / "lossy.webp", quality=95)
    picture.save(folder / "lossless.webp", lossless=True)
    picture.save(folder / "film.webp", save_all=True, append_images=[picture.rotate(180)], lossless=True)
    picture.save(folder / "film.png", save_all=True, append_images=[picture.rotate(180)])
    pyvips.Image.new_from_array(pixels).copy(interpretation="srgb").pngsave(str(folder / "interlaced.png"), interlace=True)
    picture.convert("P", palette=Image.ADAPTIVE).save(folder / "palette.png")
    picture.convert("P", palette=Image.ADAPTIVE).save(folder / "palette.tif")
    picture.convert("P", palette=Image.ADAPTIVE).save(folder / "palette.bmp")
    for name in ["plain.png", "interlaced.png", "interlaced.bmp", "lossless.webp", "film.webp", "film.png"]:
        check.means(name)
    for name in ["progressive.jpg", "lossy.webp", "plain.gif", "palette.png", "palette.tif", "palette.bmp"]:
        check.means(name, tolerance=ROUGH)
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x112] = orientation
        stored = picture.transpose({2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation])
        stored.save(folder / f"held{orientation}.jpg", quality=95, exif=exif, subsampling=0)
        stored.save(folder / f"held{orientation}.webp", lossless=True, exif=exif)
        for ending in ("jpg", "webp"):
            check.means(f"held{orientation}.{ending}")


def tiffs(check, pixels):
    folder, write = check.folder, tifffile.imwrite
    deep = pixels.astype(np.uint16) * 257
    write(folder / "deep.tif", deep)
    write(folder / "deep-tiles.tif", deep, tile=(64, 64), compression="deflate", predictor=True, bigtiff=True)
    write(folder / "float.tif", pixels.astype(np.float32) / 255, compression="deflate", predictor=3)
    write(folder / "half.tif", pixels.astype(np.float16) / 255, photometric="rgb")
    write(folder / "planes.tif", pixels.transpose(2, 0, 1), planarconfig="separate", photometric="rgb")
    write(folder / "plane-tiles.tif", deep.transpose(2, 0, 1), planarconfig="separate", photometric="rgb",
          tile=(64, 64), compression="lzw")
    write(folder / "lzw.tif", pixels, compression="lzw", predictor=True)
    write(folder / "packbits.tif", pixels, compression="packbits", rowsperstrip=7)
    write(folder / "webp.tif", pixels, compression="webp", tile=(64, 64))
    write(folder / "jpeg-big.tif", pixels, bigtiff=True, tile=(64, 64), compression="jpeg", photometric="rgb")
    write(folder / "pages.tif", pixels, photometric="rgb")
    write(folder / "pages.tif", pixels[::-1].copy(), photometric="rgb", append=True)
    image = pyvips.Image.new_from_array(pixels).copy(interpretation="srgb")
    image.tiffsave(str(folder / "vips-jpeg.tif"), compression="jpeg", Q=92, tile=True,
                   tile_width=256, tile_height=256, pyramid=True, subifd=True)
    image.tiffsave(str(folder / "big-endian.tif"), compression="none")
    for name in ["deep.tif", "deep-tiles.tif", "float.tif", "half.tif", "planes.tif", "plane-tiles.tif", "lzw.tif",
                 "packbits.tif", "pages.tif", "big-endian.tif"]:
        check.means(name)
    for name in ["webp.tif", "jpeg-big.tif", "vips-jpeg.tif"]:
        check.means(name, tolerance=ROUGH)
    for compression, word in [("zstd", "Zstandard"), ("jpeg2000", "JPEG 2000"), ("lerc", "LERC")]:
        write(folder / f"{compression}.tif", pixels, compression=compression, tile=(64, 64))
        check.refused(f"{compression}.tif", word)


def profiles(check, image):
    """Colours in another space with its profile: equal to what LittleCMS makes of the same file."""
    folder = check.folder
    p3 = image.icc_transform("p3", input_profile="srgb", intent="relative")
    p3.pngsave(str(folder / "p3.png"), profile="p3")
    p3.jpegsave(str(folder / "p3.jpg"), Q=100, profile="p3", subsample_mode="off")
    p3.tiffsave(str(folder / "p3.tif"), profile="p3")
    p3.webpsave(str(folder / "p3.webp"), lossless=True, profile="p3")
    deep = image.icc_transform("p3", input_profile="srgb", intent="relative", depth=16)
    deep.pngsave(str(folder / "p3-deep.png"), profile="p3")
    deep.tiffsave(str(folder / "p3-deep.tif"), profile="p3")
    for name in ["p3.png", "p3.tif", "p3.webp", "p3-deep.png", "p3-deep.tif"]:
        check.means(name)
    # JPEG rounds before the colours are converted, which makes more of it.
    check.means("p3.jpg", tolerance=ROUGH)
    cmyk = image.icc_transform("cmyk", input_profile="srgb", intent="relative")
    cmyk.jpegsave(str(folder / "cmyk.jpg"), Q=97, profile="cmyk")
    cmyk.tiffsave(str(folder / "cmyk.tif"), profile="cmyk")
    for name in ["cmyk.jpg", "cmyk.tif"]:
        back = pyvips.Image.new_from_file(str(folder / name))
        back = back.icc_transform("srgb", embedded=True, intent="relative", black_point_compensation=False)
        check.means(name, expected=quadrants(back.numpy()))


def refusals(check, picture):
    folder = check.folder
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (192, 256, 3), np.uint8))
    for ending in ("png", "jpg", "webp", "bmp", "tif", "gif"):
        noise.save(folder / f"noise.{ending}")
        whole = (folder / f"noise.{ending}").read_bytes()
        (folder / f"cut.{ending}").write_bytes(whole[:len(whole) // 2])
        check.refused(f"cut.{ending}")
    noise.save(folder / "progressive-noise.jpg", progressive=True)
    whole = (folder / "progressive-noise.jpg").read_bytes()
    (folder / "cut-progressive.jpg").write_bytes(whole[:len(whole) * 2 // 3])
    check.refused("cut-progressive.jpg")
    for ending, word in [("avif", "AVIF"), ("jp2", "JPEG 2000"), ("ppm", "Netpbm"), ("ico", "ICO"), ("pdf", "PDF")]:
        try:
            picture.save(folder / f"other.{ending}")
        except (OSError, ValueError, KeyError) as error:
            print(f"  without {ending}: {error}")
            continue
        (folder / f"{ending}.jpg").write_bytes((folder / f"other.{ending}").read_bytes())
        check.refused(f"{ending}.jpg", word)
    (folder / "empty.jpg").write_bytes(b"")
    check.refused("empty.jpg", "it is empty")


def main():
    pixels = np.repeat(np.repeat(COLOURS, 96, 0), 128, 1)
    picture = Image.fromarray(pixels)
    with tempfile.TemporaryDirectory() as folder:
        check = Check(sys.argv[1], pathlib.Path(folder))
        plain(check, picture, pixels)
        tiffs(check, pixels)
        profiles(check, pyvips.Image.new_from_array(pixels).copy(interpretation="srgb"))
        refusals(check, picture)
        print(f"{check.files} files, {check.failures} differences")
    sys.exit(check.failures > 0)


if __name__ == "__main__":
    main()
