//! Which files a command writes, and whether they can be written and have room: asked before hours of work, not
//! after.

use std::path::{Path, PathBuf};

use clap::Args;

use super::failure::Failure;
use super::kept::quoted;
use super::seeds::Seeds;
use super::settings::Asked;
use super::tell;
use crate::disk::{self, Need, System};
use crate::estimate::area;
use crate::output::{Format, Kind, Quality, check_replaceable, check_writable, files_folder, notes_path};
use crate::raster::Scratch;
use crate::sampler::cascade::MAX_AREA;
use crate::sampler::units::ImageSize;
use crate::spec::RenderSpec;

/// The ending of latents.
pub(super) const LATENTS: &str = "safetensors";
/// The ending of plans.
pub(super) const PLAN: &str = "json";

/// Which files to write.
#[derive(Debug, Clone, Args)]
pub(super) struct FileArgs {
    /// The picture to write: .png, .tif (tiled, with a pyramid, BigTIFF where it must be), or .dzi (Deep Zoom: a
    /// folder of tiles beside it). A file that is there is replaced when the picture is complete.
    #[arg(short, long, value_name = "FILE", default_value = "out.png")]
    pub(super) output: PathBuf,
    #[command(flatten)]
    pub(super) quality: QualityArgs,
    /// Write the last stage's latents.
    #[arg(long, value_name = "FILE.safetensors")]
    pub(super) save_latents: Option<PathBuf>,
    /// Write the plan of the upscale stages.
    #[arg(long, value_name = "FILE.json")]
    pub(super) save_plan: Option<PathBuf>,
    #[command(flatten)]
    pub(super) clobber: ClobberArgs,
}

/// How well pixels are kept.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(super) struct QualityArgs {
    /// How the picture's pixels are kept: lossless, or 1 to 100 for JPEG. Lossless unless given, but for .dzi,
    /// which is JPEG 90.
    #[arg(long, value_name = "QUALITY")]
    pub(super) quality: Option<Quality>,
}

/// What becomes of files that are there.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(super) struct ClobberArgs {
    /// Refuse to begin when a file to be written is there already, instead of replacing it.
    #[arg(long)]
    pub(super) no_clobber: bool,
}

impl ClobberArgs {
    /// Fails when a file could not be written: before hours of work, not after.
    pub(super) fn check(self, path: &Path) -> Result<(), Failure> {
        let there = written(path).into_iter().find(|path| path.symlink_metadata().is_ok());
        if let Some(there) = there.filter(|_| self.no_clobber) {
            return Err(Failure::output(format!(
                "{} is there already, and --no-clobber leaves it as it is: choose another name",
                there.display()
            )));
        }
        Ok(check_writable(path)?)
    }
}

/// Everything that is written under a name: Deep Zoom has notes and a folder of tiles beside its descriptor.
fn written(path: &Path) -> Vec<PathBuf> {
    let mut all = vec![path.to_owned()];
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("dzi"))
        && let Some(name) = path.file_stem().and_then(|stem| stem.to_str())
    {
        all.extend([notes_path(name), files_folder(name)].map(|beside| path.with_file_name(beside)));
    }
    all
}

/// Where pictures under way lie.
#[derive(Debug, Clone, Args)]
pub(super) struct ScratchArgs {
    /// Folder for pictures under way, on a disk with 4 bytes for each pixel, and with a store room for the
    /// finished file: the output's unless given.
    #[arg(long, value_name = "FOLDER")]
    scratch: Option<PathBuf>,
}

impl ScratchArgs {
    /// The folder given, or that of an output.
    pub(super) fn of(&self, output: &Path) -> Result<Scratch, Failure> {
        let beside = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let scratch = Scratch::new(self.scratch.clone().unwrap_or_else(|| beside.to_owned()));
        check_scratch(&scratch)?;
        Ok(scratch)
    }

    /// As a flag, where it was given.
    pub(super) fn flag(&self) -> String {
        self.scratch
            .as_ref()
            .map_or(String::new(), |s| format!(" --scratch {}", quoted(&s.display().to_string())))
    }
}

/// Fails when no file can be made there.
pub(super) fn check_scratch(scratch: &Scratch) -> Result<(), Failure> {
    scratch.file().map(drop).map_err(|e| Failure::output(scratch.explain(&e)))
}

/// Fails when a name means no file that could be written.
fn check_name(path: &Path) -> Result<(), Failure> {
    if path == Path::new("-") {
        return Err(Failure::usage(
            "`-` names no file, and nothing is written to standard output: give a name, for example out.png",
        ));
    }
    match path.metadata() {
        Ok(there) if !there.is_file() && !there.is_dir() => Err(Failure::output(format!(
            "cannot write {}: it is no regular file; give a name, for example out.png",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// The format of a picture to be written under this name.
pub(super) fn format_of(path: &Path, quality: Option<Quality>) -> Result<Format, Failure> {
    check_name(path)?;
    Format::of(path, quality).map_err(Failure::usage)
}

/// Fails unless a picture that is kept in one format is to be written in the same.
pub(super) fn check_kind(render: &str, kind: Kind, path: &Path) -> Result<(), Failure> {
    if format_of(path, None)?.kind == kind {
        return Ok(());
    }
    let kind = kind.extension();
    Err(Failure::usage(format!(
        "render {render} is kept as .{kind}: name the output {}",
        path.with_extension(kind).display()
    )))
}

/// Fails unless a file other than a picture has its ending.
pub(super) fn check_ending(path: &Path, ending: &str) -> Result<(), Failure> {
    check_name(path)?;
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending)) {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "{} does not end in .{ending}, which is what is written: name it {}",
        path.display(),
        path.with_extension(ending).display()
    )))
}

impl FileArgs {
    /// The picture's format.
    pub(super) fn format(&self) -> Result<Format, Failure> {
        format_of(&self.output, self.quality.quality)
    }

    /// The files of one of the seeds.
    pub(super) fn of(&self, seeds: &Seeds, seed: u64) -> Self {
        let named = |path: &Option<PathBuf>| path.as_ref().map(|p| seeds.file(p, seed));
        Self {
            output: seeds.file(&self.output, seed),
            save_latents: named(&self.save_latents),
            save_plan: named(&self.save_plan),
            quality: self.quality,
            clobber: self.clobber,
        }
    }

    /// Fails when a file could not be written, or two have one name.
    pub(super) fn check(&self, seeds: &Seeds) -> Result<(), Failure> {
        let format = self.format()?;
        let named = [Some(&self.output), self.save_latents.as_ref(), self.save_plan.as_ref()];
        let named: Vec<&PathBuf> = named.into_iter().flatten().collect();
        if let Some(i) = (1..named.len()).find(|&i| named[..i].contains(&named[i])) {
            return Err(Failure::usage(format!(
                "two outputs are called {}: name them apart",
                named[i].display()
            )));
        }
        self.save_latents.iter().try_for_each(|path| check_ending(path, LATENTS))?;
        self.save_plan.iter().try_for_each(|path| check_ending(path, PLAN))?;
        for &seed in &seeds.0 {
            named.iter().try_for_each(|path| self.clobber.check(&seeds.file(path, seed)))?;
            if format.kind == Kind::Dzi {
                check_replaceable(&seeds.file(&self.output, seed))?;
            }
        }
        Ok(())
    }
}

/// What a render on this machine writes, and where.
#[derive(Debug)]
pub(super) struct Room<'a> {
    pub(super) files: &'a FileArgs,
    pub(super) scratch: &'a Scratch,
    /// The store's folder, where it has one.
    pub(super) store: Option<&'a Path>,
    pub(super) pictures: usize,
}

impl Room<'_> {
    /// Fails when a disk is certainly too small for pictures of this size; warns when it may be.
    pub(super) fn check(&self, size: ImageSize) -> Result<(), Failure> {
        let warnings = self.remarks(size)?;
        warnings.iter().for_each(|w| tell(&format!("warning: {w}")));
        Ok(())
    }

    /// The same without a word.
    pub(super) fn remarks(&self, size: ImageSize) -> Result<Vec<String>, Failure> {
        if self.pictures == 0 {
            return Ok(Vec::new());
        }
        let (area, format, pictures) = (area(size), self.files.format()?, self.pictures as u64);
        let mut needs = vec![
            // A picture that is kept is written there before it goes to the store.
            Need::scratch(area, self.store.map(|_| format), self.scratch),
            Need::output(area, format, &self.files.output, pictures),
        ];
        needs.extend(self.store.map(|folder| Need::store(area, format, folder, pictures)));
        disk::check(&needs, &System).map_err(Failure::output)
    }
}

/// The size of the final picture.
pub(super) fn final_size(spec: &RenderSpec) -> ImageSize {
    spec.upscales.last().map_or(spec.base, |u| u.size)
}

/// The size of the final picture, where it is known before the model is. One that is refused later is not.
pub(super) fn known_size(asked: &Asked) -> Option<ImageSize> {
    asked_size(asked).filter(|size| area(*size) <= MAX_AREA)
}

fn asked_size(asked: &Asked) -> Option<ImageSize> {
    let request = &asked.request;
    if let (Some(width), Some(height)) = (request.width, request.height) {
        return Some(ImageSize { width, height });
    }
    let base = asked.inputs.picture.as_ref().map(crate::sampler::resize::Picture::size);
    let factor = request.scale.or(request.stages.last().copied());
    match (base, factor, &request.from) {
        (Some(base), Some(factor), _) if factor >= 1.0 => {
            let side = |side: u32| (f64::from(side) * factor) as u32;
            Some(ImageSize { width: side(base.width), height: side(base.height) })
        }
        (None, None, Some(from)) if request.width.or(request.height).is_none() => Some(final_size(from)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_mean_no_file_are_refused() {
        let said = |failure: Result<(), Failure>| failure.unwrap_err().to_string();
        assert!(format_of(Path::new("-"), None).is_err());
        assert!(said(check_ending(Path::new("-"), PLAN)).contains("standard output"));
        assert!(said(check_ending(Path::new("l.txt"), LATENTS)).contains("name it l.safetensors"));
        assert!(check_ending(Path::new("l.SafeTensors"), LATENTS).is_ok());
        assert!(
            said(check_kind("r1", Kind::Png, Path::new("a/r1.tif"))).contains("name the output a/r1.png")
        );
        assert!(check_kind("r1", Kind::Tif, Path::new("r1.tiff")).is_ok());
        #[cfg(unix)]
        assert!(format_of(Path::new("/dev/null"), None).unwrap_err().to_string().contains("no regular file"));
    }

    #[test]
    fn a_file_that_is_there_is_kept_where_that_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        std::fs::write(&path, "old").unwrap();
        assert!(ClobberArgs { no_clobber: false }.check(&path).is_ok());
        let error = ClobberArgs { no_clobber: true }.check(&path).unwrap_err();
        assert!(error.to_string().contains("--no-clobber") && error.exit_code() == 5, "{error}");
        assert!(ClobberArgs { no_clobber: true }.check(&folder.path().join("b.png")).is_ok());
        let dzi = folder.path().join("z.dzi");
        assert!(ClobberArgs { no_clobber: true }.check(&dzi).is_ok());
        for beside in ["z.dzi.json", "z_files"] {
            std::fs::write(folder.path().join(beside), "").unwrap();
            assert!(ClobberArgs { no_clobber: true }.check(&dzi).is_err(), "{beside}");
            std::fs::remove_file(folder.path().join(beside)).unwrap();
        }
    }
}
