#!/usr/bin/env python3
"""Reads pictures with programs that are not ours and compares them with the raw pixels.

    check_pictures.py --raw PIXELS.rgb --size 3001x2003 PICTURE.tif PICTURE.png PICTURE.dzi ...

PIXELS.rgb is 8-bit RGB, row by row. Files with lossless compression must match to the bit, JPEG within
--jpeg-tolerance on the mean. Smaller levels are compared with box averages, within --level-tolerance on
the mean, because a pyramid may be made with a better filter; JPEG levels below 64 pixels are only measured
in size, because their colours are smeared over several pixels. Needs numpy, pillow, tifffile, imagecodecs;
uses vips, gdalinfo and openslide-show-properties where they are installed. Exits with 1 when anything differs.
"""

import argparse
import io
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET

import numpy as np
import tifffile
from PIL import Image

Image.MAX_IMAGE_PIXELS = None
SETTINGS = "{urn:gigasmith:1#}settings"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
DC = "{http://purl.org/dc/elements/1.1/}"


def halve(pixels):
    height, width, _ = pixels.shape
    padded = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge").astype(np.uint16)
    total = padded[0::2, 0::2] + padded[1::2, 0::2] + padded[0::2, 1::2] + padded[1::2, 1::2]
    return ((total + 2) // 4).astype(np.uint8)


def pyramid(pixels):
    levels = [pixels]
    while max(levels[-1].shape[:2]) > 1:
        levels.append(halve(levels[-1]))
    return levels


class Check:
    def __init__(self, levels, arguments):
        self.levels, self.arguments, self.failures = levels, arguments, 0

    def that(self, good, what):
        if not good:
            self.failures += 1
            print(f"  WRONG: {what}")

    def pixels(self, reader, level, pixels, lossless):
        truth = self.levels[level]
        if pixels.shape != truth.shape:
            return self.that(False, f"{reader}: level {level} is {pixels.shape}, not {truth.shape}")
        difference = np.abs(pixels.astype(np.int16) - truth.astype(np.int16))
        mean, largest = float(difference.mean()), int(difference.max())
        allowed = 0.0 if lossless else self.arguments.jpeg_tolerance
        if level > 0:
            allowed = max(allowed, self.arguments.level_tolerance)
        if level > 0 and not lossless and max(truth.shape) < 64:
            allowed = 255.0
        print(f"  {reader}: level {level}, {truth.shape[1]}x{truth.shape[0]}, mean {mean:.3f}, largest {largest}")
        self.that(mean <= allowed, f"{reader}: level {level} differs by {mean:.3f} on the mean, {allowed} allowed")


def run(*command):
    if shutil.which(command[0]) is None:
        return None
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def vips_pixels(source):
    with tempfile.TemporaryDirectory() as folder:
        raw = pathlib.Path(folder) / "pixels.raw"
        if run("vips", "rawsave", source, str(raw)) is None:
            return None
        return np.fromfile(raw, np.uint8)


def check_tiff(check, path):
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        first = file.pages[0]
        lossless = first.compression.name != "JPEG"
        sizes = [level.shape[:2] for level in series.levels]
        print(f"  tifffile: {'BigTIFF' if file.is_bigtiff else 'TIFF'}, {first.compression.name}, {sizes}")
        check.that(len(file.series) == 1, "tifffile sees several series")
        check.that(series.is_pyramidal == (len(file.pages) > 1), "tifffile sees no pyramid")
        check.that(len(sizes) == len(file.pages), "tifffile has pages outside the pyramid")
        check.that(first.is_tiled, "tifffile sees no tiles")
        last = sizes[-1]
        check.that(max(last) <= first.tilewidth, f"the last level {last} has more than a tile")
        for level in range(len(sizes)):
            check.pixels("tifffile", level, series.levels[level].asarray(), lossless)
        check_texts(check, first)
    with Image.open(path) as image:
        check.that(image.n_frames == len(sizes), f"pillow sees {image.n_frames} frames")
        for level in range(image.n_frames):
            image.seek(level)
            check.pixels("pillow", level, np.asarray(image.convert("RGB")), lossless)
    pages = run("vipsheader", "-f", "n-pages", path) if len(sizes) > 1 else None
    check.that(pages is None or int(pages) == len(sizes), f"vips sees {pages} pages")
    for level, (height, width) in enumerate(sizes):
        pixels = vips_pixels(f"{path}[page={level}]")
        if pixels is not None:
            check.pixels("vips", level, pixels.reshape(height, width, 3), lossless)
    check_overviews(check, path, sizes)


def check_texts(check, page):
    packet = page.tags[700].value
    root = ET.fromstring(packet.decode("utf-8"))
    json.loads(root.find(f".//{SETTINGS}").text)
    described = root.find(f".//{DC}description/{RDF}Alt/{RDF}li").text
    own = page.tags[270].value
    check.that(own.replace("\r\n", "\n") == described.replace("\r\n", "\n"), f"{own!r} is not {described!r}")


def check_overviews(check, path, sizes):
    report = run("gdalinfo", "-json", path)
    if report is not None:
        band = json.loads(report[report.index("{"):])["bands"][0]
        found = [tuple(o["size"][::-1]) for o in band.get("overviews", [])]
        check.that(found == sizes[1:], f"gdal has the overviews {found}")
        print(f"  gdal: {len(found)} overviews")
    report = run("openslide-show-properties", path)
    if report is not None:
        properties = dict(line.split(": ", 1) for line in report.splitlines() if line.startswith("openslide."))
        count = int(properties["openslide.level-count"].strip("'"))
        check.that(count == len(sizes), f"openslide has {count} levels")
        print(f"  openslide: {count} levels")


def check_png(check, path):
    with Image.open(path) as image:
        check.pixels("pillow", 0, np.asarray(image), True)
        json.loads(image.text["gigasmith"])
        check.that(image.text["parameters"] != "", "there are no parameters")
    pixels = vips_pixels(path)
    if pixels is not None:
        check.pixels("vips", 0, pixels.reshape(check.levels[0].shape), True)


def check_dzi(check, path):
    path = pathlib.Path(path)
    image = ET.parse(path).getroot()
    size = image.find("{*}Size")
    tile, overlap = int(image.get("TileSize")), int(image.get("Overlap"))
    extension, lossless = image.get("Format"), image.get("Format") == "png"
    height, width, _ = check.levels[0].shape
    check.that((int(size.get("Width")), int(size.get("Height"))) == (width, height), "the size is wrong")
    files = path.with_name(path.stem + "_files")
    expected = set()
    for level, truth in enumerate(check.levels):
        number = len(check.levels) - 1 - level
        rows, columns, _ = truth.shape
        pixels = np.zeros_like(truth)
        for y in range(-(-rows // tile)):
            for x in range(-(-columns // tile)):
                name = files / str(number) / f"{x}_{y}.{extension}"
                expected.add(name)
                left, top = max(x * tile - overlap, 0), max(y * tile - overlap, 0)
                right, bottom = min((x + 1) * tile + overlap, columns), min((y + 1) * tile + overlap, rows)
                part = np.asarray(Image.open(io.BytesIO(name.read_bytes())).convert("RGB"))
                good = part.shape == (bottom - top, right - left, 3)
                check.that(good, f"{name} is {part.shape}")
                if good:
                    pixels[top:bottom, left:right] = part
        check.pixels("pillow", level, pixels, lossless)
    found = {p for p in files.rglob("*") if p.is_file()}
    check.that(found == expected, f"files that do not belong: {sorted(found ^ expected)[:5]}")
    notes = json.loads(path.with_name(path.name + ".json").read_text("utf-8"))
    check.that({"software", "parameters", "settings"} <= notes.keys(), "the texts are not complete")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", required=True)
    parser.add_argument("--size", required=True, help="WIDTHxHEIGHT")
    parser.add_argument("--jpeg-tolerance", type=float, default=3.0)
    parser.add_argument("--level-tolerance", type=float, default=6.0)
    parser.add_argument("paths", nargs="+")
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    check = Check(pyramid(np.fromfile(arguments.raw, np.uint8).reshape(height, width, 3)), arguments)
    kinds = {".tif": check_tiff, ".tiff": check_tiff, ".png": check_png, ".dzi": check_dzi}
    for path in arguments.paths:
        print(path)
        kinds[pathlib.Path(path).suffix](check, path)
    print(f"{len(arguments.paths)} pictures, {check.failures} differences")
    sys.exit(check.failures > 0)


if __name__ == "__main__":
    main()
