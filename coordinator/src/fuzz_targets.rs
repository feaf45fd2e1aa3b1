//! Readers of plans, settings, records, manifests and pictures, fed with what is nearly one. See `tests/src/fuzz.rs`.

use std::io::{self, Cursor};

use crate::digest::Digest;
use crate::fuzz::{Limits, Verdict, fuzz};
use crate::input::{read_picture, read_settings};
use crate::output::testing::{Memory, embedded};
use crate::output::{
    DziFormat, DziOptions, FolderSink, Settings, TiffCompression, TiffOptions, TiffVariant, write_dzi,
    write_png, write_tiff,
};
use crate::raster::Scratch;
use crate::sampler::plan::{Geometry, Plan, PlanFile, PlanKind, StagePlanFile};
use crate::sampler::units::LatentSize;
use crate::store::manifest::{ArrayRecord, Manifest, ManifestAt};
use crate::store::{RenderRecord, StateRecord, StoreError};
use crate::verify::Trace;
use crate::view::{DziSource, LevelsSource, TiffSource, TileFetch, TileSource};

const LIMITS: Limits = Limits { memory: 64 << 20 };
/// Pictures are decoded.
const PICTURES: Limits = Limits { memory: 512 << 20 };

/// A refusal has no effect on a terminal.
fn refused(error: impl std::fmt::Display) -> Verdict {
    let message = error.to_string();
    if message.is_empty() || message.contains('\x1b') { Err(format!("it says {message:?}")) } else { Ok(()) }
}

#[test]
fn plans() {
    let canvas = LatentSize { height: 40, width: 56 };
    let file = |kind| {
        let plan = Plan::draw(kind, Geometry::new(canvas, 16), 4, 3, 1);
        PlanFile { version: 1, stages: vec![StagePlanFile::from_plan(&plan, 16)] }.to_json()
    };
    let corpus = vec![file(PlanKind::Paper), file(PlanKind::Balanced)];
    fuzz("plans", corpus, LIMITS, move |_, bytes| {
        let Ok(file) = serde_json::from_slice::<PlanFile>(bytes) else { return Ok(()) };
        for stage in &file.stages {
            match stage.to_plan(1, canvas, 16, 4) {
                Ok(plan) if plan.steps() == 4 && !plan.is_empty() => {}
                Ok(plan) => return Err(format!("a plan of {} steps", plan.steps())),
                Err(error) => refused(error)?,
            }
        }
        Ok(())
    });
}

#[test]
fn settings() {
    let corpus = vec![Settings::new(crate::spec::tests::spec()).to_json().into_bytes()];
    fuzz("settings", corpus, LIMITS, |_, bytes| match Settings::from_json(&String::from_utf8_lossy(bytes)) {
        Err(error) => refused(error),
        Ok(settings) => {
            settings.spec.hash();
            settings.to_parameters();
            settings.spec.differences(&crate::spec::tests::spec());
            match Settings::from_json(&settings.to_json()) {
                Ok(again) if again == settings => Ok(()),
                other => Err(format!("it comes back as {other:?}")),
            }
        }
    });
}

#[test]
fn manifests() {
    let first = include_str!("store/manifest-v1.json").trim_end();
    let sampling = Manifest::parse(first.as_bytes()).unwrap();
    let ManifestAt::Sampling { canvas, .. } = sampling.at.clone() else {
        unreachable!("it is of a sampling")
    };
    let (blob, shape) = (Digest::of(b"some"), [3, 8, 8]);
    let at = ManifestAt::Decoding {
        canvas,
        latent: vec![blob],
        bands: vec![blob],
        tails: vec![ArrayRecord { shape, blob }],
        waiting: vec![(7, ArrayRecord { shape, blob })],
        norms: None,
    };
    let corpus = vec![sampling.to_bytes(), Manifest { at, ..sampling }.to_bytes()];
    fuzz("manifests", corpus, LIMITS, |_, bytes| {
        let mut bytes = bytes.to_vec();
        // Nearly every change breaks the seal: behind it is what is looked for.
        if let Some(start) = bytes.windows(11).position(|w| w == b"\"manifest\":") {
            let inner = bytes[start + 11..].strip_suffix(b"}").unwrap_or_default().to_vec();
            bytes = format!("{{\"blake3\":\"{}\",\"manifest\":", blake3::hash(&inner).to_hex()).into_bytes();
            bytes.extend(inner);
            bytes.push(b'}');
        }
        match Manifest::parse(&bytes) {
            Err(error) => refused(error),
            Ok(manifest) => {
                manifest.blobs();
                manifest.progress();
                manifest.name();
                Ok(())
            }
        }
    });
}

#[test]
fn records() {
    let state = StateRecord::queued(3);
    let render = br#"{"version":1,"id":"r1","order":3,"request":{"prompt":"a fox","seed":7,"model":"pocket",
        "steps":30,"slider":[12,18],"guidance_scale":7.5,"plan":"balanced","vae":"auto","dtype":"f32"},
        "priority":2,"picture":{"size":{"width":2,"height":1},"hash":"ab"},"plan":null}"#;
    let corpus = vec![serde_json::to_vec(&state).unwrap(), render.to_vec()];
    fuzz("records", corpus, LIMITS, |_, bytes| {
        let state = serde_json::from_slice::<StateRecord>(bytes);
        let render = serde_json::from_slice::<RenderRecord>(bytes);
        let damaged =
            |e: serde_json::Error| refused(StoreError::Damaged { path: "r".into(), reason: e.to_string() });
        state.map(drop).or_else(damaged)?;
        render.map(drop).or_else(damaged)
    });
}

/// What a viewer does with a picture.
fn look(source: &dyn TileSource) -> Verdict {
    let about = source.describe();
    for level in [0, about.max_level / 2, about.max_level, about.max_level + 1, u32::MAX] {
        for (column, row) in [(0, 0), (1, 0), (0, 1), (u32::MAX, u32::MAX)] {
            if let Err(error) = source.tile(level, column, row) {
                refused(error)?;
            }
        }
    }
    Ok(())
}

#[test]
fn tiffs() {
    let write = |compression, variant, side: u32| {
        let mut file = Cursor::new(Vec::new());
        let options = TiffOptions { compression, variant };
        write_tiff(&mut file, &Memory::smooth(side, side / 2 + 1), &embedded(), options, &mut |_, _| Ok(()))
            .unwrap();
        file.into_inner()
    };
    let corpus = vec![
        write(TiffCompression::Deflate, TiffVariant::Classic, 300),
        write(TiffCompression::Jpeg { quality: 80 }, TiffVariant::Classic, 300),
        write(TiffCompression::Deflate, TiffVariant::Big, 70),
    ];
    fuzz("tiffs", corpus, PICTURES, |_, bytes| match TiffSource::new(Cursor::new(bytes.to_vec()), "a") {
        Err(error) => refused(error),
        Ok(source) => look(&source),
    });
}

/// A picture's parts, of which the first is changed.
struct Parts(Vec<(String, Vec<u8>)>);

impl TileFetch for Parts {
    fn get(&self, path: &str) -> io::Result<Vec<u8>> {
        let found = self.0.iter().find(|(name, _)| name == path);
        found.map(|(_, bytes)| bytes.clone()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

#[test]
fn deep_zooms() {
    let folder = tempfile::tempdir().unwrap();
    let mut sink = FolderSink::new(folder.path(), "a").unwrap();
    let options = DziOptions { format: DziFormat::Png, ..DziOptions::default() };
    write_dzi(&mut sink, "a", &Memory::smooth(20, 9), &embedded(), options, &mut |_, _| Ok(())).unwrap();
    let names = ["a.dzi", "a.dzi.json"];
    let corpus: Vec<Vec<u8>> = names.iter().map(|n| std::fs::read(folder.path().join(n)).unwrap()).collect();
    let whole = corpus.clone();
    fuzz("deep zooms", corpus, LIMITS, move |which, bytes| {
        let mut parts: Vec<_> = names.iter().map(|n| (*n).to_owned()).zip(whole.clone()).collect();
        parts[which].1 = bytes.to_vec();
        match DziSource::new(Box::new(Parts(parts)), "a") {
            Err(error) => refused(error),
            Ok(source) => look(&source),
        }
    });
}

#[test]
fn pngs() {
    let write = |width, height| {
        let mut file = Vec::new();
        write_png(&mut file, &Memory::smooth(width, height), &embedded(), &mut |_, _| Ok(())).unwrap();
        file
    };
    // Settings that were compressed: a few bytes may stand for many.
    let mut bomb = Vec::new();
    let encoder = png::Encoder::new(&mut bomb, 1, 1);
    let text = "x".repeat(100 << 20);
    let mut writer = encoder.write_header().unwrap();
    let mut chunk = png::text_metadata::ITXtChunk::new("gigasmith", text);
    chunk.compressed = true;
    writer.write_text_chunk(&chunk).unwrap();
    writer.write_image_data(&[0]).unwrap();
    writer.finish().unwrap();
    let corpus = vec![write(70, 30), write(1, 1), bomb];
    let folder = tempfile::tempdir().unwrap();
    fuzz("pngs", corpus, LIMITS, move |_, bytes| {
        let path = folder.path().join("a.png");
        std::fs::write(&path, bytes).unwrap();
        read_settings(&path).map(drop).or_else(refused)?;
        read_picture(&path).map(drop).or_else(refused)?;
        match LevelsSource::open_png(Cursor::new(bytes), "a", &Scratch::new(folder.path())) {
            Err(error) => refused(error),
            Ok(source) => look(&source),
        }
    });
}

/// What cameras and other programs write, told apart by its bytes.
#[test]
fn pictures() {
    use image::{DynamicImage, ImageFormat, RgbImage};
    let picture = RgbImage::from_fn(40, 24, |x, y| image::Rgb([x as u8 * 6, y as u8 * 10, (x * y) as u8]));
    let picture = DynamicImage::ImageRgb8(picture);
    let formats =
        [ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Gif, ImageFormat::Png];
    let encode = |format| {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    };
    let folder = tempfile::tempdir().unwrap();
    fuzz("pictures", formats.map(encode).to_vec(), LIMITS, move |_, bytes| {
        let path = folder.path().join("a");
        std::fs::write(&path, bytes).unwrap();
        read_settings(&path).map(drop).or_else(refused)?;
        read_picture(&path).map(drop).or_else(refused)
    });
}

#[test]
fn traces() {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/nocfg");
    let folder = tempfile::tempdir().unwrap();
    let names = ["case.json", "trace.safetensors"];
    let whole: Vec<Vec<u8>> = names.iter().map(|n| std::fs::read(source.join(n)).unwrap()).collect();
    for (name, bytes) in names.iter().zip(&whole) {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    // The header of the tensors is what can be wrong: the rest is numbers.
    let corpus = vec![whole[0].clone(), whole[1][..whole[1].len().min(20_000)].to_vec()];
    fuzz("traces", corpus, PICTURES, move |which, bytes| {
        let path = folder.path().join(names[which]);
        let mut bytes = bytes.to_vec();
        if which == 1 {
            bytes.extend(whole[1].get(20_000..).unwrap_or_default());
        }
        std::fs::write(&path, bytes).unwrap();
        let verdict = match Trace::read(folder.path()) {
            Err(error) => refused(error),
            Ok(trace) => trace.plan(LatentSize { height: 64, width: 64 }).map(drop).or_else(refused),
        };
        std::fs::write(&path, &whole[which]).unwrap();
        verdict
    });
}
