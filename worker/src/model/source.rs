//! What a user calls a model: `pocket`, a folder, a hub id, or, for tests and benchmarks, `synthetic`.

use std::path::PathBuf;

use super::error::LoadError;
use super::kind;
use crate::synthetic::{Synthetic, SyntheticOptions};

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// The model embedded in the binary.
    Pocket,
    /// A folder in the layout of the public SDXL repositories.
    Folder(PathBuf),
    /// A stand-in without weights, for tests and benchmarks.
    Synthetic(SyntheticOptions),
    /// A repository of the hub.
    Hub {
        /// `organisation/name`.
        id: String,
        /// A branch, tag or commit; `None` for `main`.
        revision: Option<String>,
    },
}

impl ModelSource {
    /// `pocket`; an existing folder; `org/name` with an optional `@revision`; or `synthetic` with options
    /// (see [`SyntheticOptions`]). Looks at the file system to see whether the folder exists, and what a file is
    /// that was given in its place.
    pub fn parse(text: &str) -> Result<Self, LoadError> {
        if text == "pocket" {
            return Ok(Self::Pocket);
        }
        if let Some(rest) = text.strip_prefix("synthetic")
            && (rest.is_empty() || rest.starts_with(':'))
        {
            let options = rest.trim_start_matches(':').parse();
            return options.map(Self::Synthetic).map_err(LoadError::SyntheticOption);
        }
        let path = PathBuf::from(text);
        if path.is_dir() {
            return Ok(Self::Folder(path));
        }
        if path.is_file() {
            return Err(kind::of_file(&path));
        }
        if ["http://", "https://"].iter().any(|start| text.starts_with(start)) {
            return Err(LoadError::Address(text.to_owned()));
        }
        if kind::is_weights(&path) {
            return Err(LoadError::NoSuchFile(text.to_owned()));
        }
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (text, None),
        };
        let word = |w: &str| {
            !w.is_empty()
                && !w.starts_with('.')
                && w.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        let valid_id = id.split_once('/').is_some_and(|(org, name)| word(org) && word(name));
        let valid_revision = revision.is_none_or(|r| r.split('/').all(word));
        if !(valid_id && valid_revision) {
            return Err(LoadError::UnknownSource(text.to_owned()));
        }
        Ok(Self::Hub { id: id.to_owned(), revision: revision.map(str::to_owned) })
    }

    /// What to call the model: `pocket`, the folder's name, the hub id.
    pub fn name(&self) -> String {
        match self {
            Self::Pocket => "pocket".to_owned(),
            Self::Synthetic(_) => Synthetic::NAME.to_owned(),
            Self::Folder(path) => {
                let full = path.canonicalize().unwrap_or_else(|_| path.clone());
                full.file_name()
                    .map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
            }
            Self::Hub { id, revision: None } => id.clone(),
            Self::Hub { id, revision: Some(revision) } => format!("{id}@{revision}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn sources_are_told_apart() {
        assert_eq!(ModelSource::parse("pocket").unwrap(), ModelSource::Pocket);
        let synthetic =
            SyntheticOptions { latency: Duration::from_millis(250), side: 16, ..SyntheticOptions::default() };
        let source = ModelSource::parse("synthetic:latency=250,side=16").unwrap();
        assert_eq!((source.name(), source), ("synthetic".into(), ModelSource::Synthetic(synthetic)));
        assert_eq!(
            ModelSource::parse("synthetic").unwrap(),
            ModelSource::Synthetic(SyntheticOptions::default())
        );
        for bad in ["synthetic:latency", "synthetic:latency=-1", "synthetic:side=0", "synthetic:speed=3"] {
            let error = ModelSource::parse(bad).unwrap_err().to_string();
            assert!(error.contains("latency=MILLISECONDS"), "{error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("my-model");
        std::fs::create_dir(&path).unwrap();
        let source = ModelSource::parse(path.to_str().unwrap()).unwrap();
        assert_eq!(source, ModelSource::Folder(path));
        assert_eq!(source.name(), "my-model");
        let hub = |id: &str, revision: Option<&str>| ModelSource::Hub {
            id: id.to_owned(),
            revision: revision.map(str::to_owned),
        };
        assert_eq!(ModelSource::parse("org/name-1.0").unwrap(), hub("org/name-1.0", None));
        assert_eq!(ModelSource::parse("org/name@refs/pr/1").unwrap(), hub("org/name", Some("refs/pr/1")));
    }

    #[test]
    fn anything_else_is_explained() {
        for text in ["sdxl", "", "/no/such/folder", "a/b/c", "../x", "org/name@", "org/na me"] {
            let error = ModelSource::parse(text).unwrap_err().to_string();
            assert!(error.contains("neither `pocket`, nor an existing folder, nor a hub id"), "{error}");
        }
        let error = ModelSource::parse("models/sd_xl_base.safetensors").unwrap_err().to_string();
        assert!(error.contains("`models/sd_xl_base.safetensors` does not exist"), "{error}");
        let error = ModelSource::parse("https://example.org/org/name").unwrap_err().to_string();
        assert!(error.contains("is a web address; give a hub model's id"), "{error}");
        let file = tempfile::NamedTempFile::with_suffix(".safetensors").unwrap();
        let error = ModelSource::parse(file.path().to_str().unwrap()).unwrap_err().to_string();
        assert!(error.contains("is an empty file"), "{error}");
    }
}
