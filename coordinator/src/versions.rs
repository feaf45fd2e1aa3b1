//! Settings that another release may have written: nothing unknown is accepted, and nothing is dropped.
//!
//! The version is looked at first, because a newer one may look different; then every name, at every level.
//! A release that adds a setting raises the version of the type that has it.

use gigasmith_proto::text::Shown;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use strsim::damerau_levenshtein;

/// Names that are proposed in place of an unknown one.
const PROPOSALS: usize = 3;

/// Written by a later release.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} has version {found}, this program reads versions 1 to {newest}: use a newer gigasmith")]
pub struct VersionError {
    /// What was read.
    pub what: &'static str,
    /// Its version.
    pub found: u64,
    /// The newest that is known.
    pub newest: u32,
}

impl VersionError {
    /// Refuses what is no known version.
    pub fn check(what: &'static str, found: u64, newest: u32) -> Result<(), Self> {
        if (1..=u64::from(newest)).contains(&found) { Ok(()) } else { Err(Self { what, found, newest }) }
    }
}

/// Settings that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Written by a later release.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// Not what they should be.
    #[error("{}", Shown(.0))]
    Malformed(String),
}

/// The versions that a document states, wherever they stand in it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Stated {
    version: Option<u64>,
    pub(crate) request: Option<Box<Stated>>,
    pub(crate) from: Option<Box<Stated>>,
    pub(crate) spec: Option<Box<Stated>>,
}

impl Stated {
    /// Checks a version; one that is not stated passes.
    pub(crate) fn check(&self, what: &'static str, newest: u32) -> Result<(), VersionError> {
        self.version.map_or(Ok(()), |found| VersionError::check(what, found, newest))
    }
}

/// Settings with versions. Their types refuse unknown names (`deny_unknown_fields`).
pub trait Versioned: DeserializeOwned {
    /// Checks every version that is stated.
    fn check_versions(stated: &Stated) -> Result<(), VersionError>;
}

/// Reads settings from JSON.
pub fn read<T: Versioned>(json: &[u8]) -> Result<T, Unreadable> {
    // What does not even have this shape is told apart below.
    if let Ok(stated) = serde_json::from_slice::<Stated>(json) {
        T::check_versions(&stated)?;
    }
    serde_json::from_slice(json).map_err(|e| Unreadable::Malformed(explained(&e.to_string())))
}

/// What a parser says; of an unknown name the known ones that are nearest, instead of all.
fn explained(error: &str) -> String {
    let quoted: Vec<&str> = error.split('`').skip(1).step_by(2).collect();
    let Some((unknown, known)) = quoted.split_first().filter(|_| error.starts_with("unknown field `")) else {
        return error.to_owned();
    };
    let mut known: Vec<&str> = known.to_vec();
    known.sort_by_key(|name| damerau_levenshtein(unknown, name));
    known.truncate(PROPOSALS);
    let at = error.rfind(" at line ").map_or("", |at| &error[at..]);
    format!("unknown field `{unknown}`{at}: the nearest that this program knows are {}", known.join(", "))
}

#[cfg(test)]
mod tests {
    use gigasmith_proto::domain::{Dtype, WireDtype};
    use serde::Serialize;
    use serde_json::{Value, json};

    use super::*;
    use crate::output::{Format, Settings};
    use crate::request::InputPicture;
    use crate::request::RenderRequest;
    use crate::sampler::plan::{PlanFile, PlanKind, StagePlanFile};
    use crate::sampler::tiles::VaeMode;
    use crate::sampler::units::ImageSize;
    use crate::spec::{RenderSpec, Rng, SPEC_VERSION};
    use crate::store::{RenderRecord, VERSION};

    /// With every part that can be left out.
    fn request() -> RenderRequest {
        RenderRequest {
            prompt: "a fox".into(),
            base: Some(ImageSize { width: 8, height: 8 }),
            dtype: Some(Dtype::F16),
            plan: Some(PlanKind::Paper),
            rng: Some(Rng::Torch),
            vae: Some(VaeMode::Tiled),
            wire: Some(WireDtype::F16),
            format: Format::of("a.dzi".as_ref(), None).unwrap(),
            from: Some(crate::spec::tests::spec()),
            ..RenderRequest::default()
        }
    }

    fn record() -> RenderRecord {
        let picture = InputPicture { size: ImageSize { width: 2, height: 1 }, hash: "ab".into() };
        RenderRecord {
            version: VERSION,
            id: "r1".into(),
            nonce: "0f".into(),
            order: 3,
            request: request(),
            priority: 2,
            picture: Some(picture),
            plan: Some("cd".into()),
        }
    }

    fn plan_file() -> PlanFile {
        let stage = StagePlanFile {
            kind: PlanKind::Paper,
            canvas: (16, 16),
            patch_side: 8,
            transition_width: 2,
            patches: vec![(0, 0, 0, 1)],
        };
        PlanFile { version: 1, stages: vec![stage] }
    }

    /// The document again and again, each time with an unknown field in another of its objects.
    fn with_unknown(value: &Value) -> Vec<Value> {
        let mut found = Vec::new();
        match value {
            Value::Object(fields) => {
                let mut here = value.clone();
                here["sharpness"] = json!(9);
                found.push(here);
                for (name, inner) in fields {
                    found.extend(with_unknown(inner).into_iter().map(|changed| {
                        let mut whole = value.clone();
                        whole[name] = changed;
                        whole
                    }));
                }
            }
            Value::Array(items) => {
                for (i, inner) in items.iter().enumerate() {
                    found.extend(with_unknown(inner).into_iter().map(|changed| {
                        let mut whole = value.clone();
                        whole[i] = changed;
                        whole
                    }));
                }
            }
            _ => {}
        }
        found
    }

    fn refuses_unknown<T: Versioned + Serialize>(whole: &T, levels: usize) {
        let value = serde_json::to_value(whole).unwrap();
        assert!(read::<T>(value.to_string().as_bytes()).is_ok());
        let changed = with_unknown(&value);
        assert_eq!(changed.len(), levels, "{value}");
        for changed in changed {
            let error = read::<T>(changed.to_string().as_bytes()).err().map(|e| e.to_string());
            assert!(error.as_ref().is_some_and(|e| e.contains("`sharpness`")), "{changed}: {error:?}");
        }
    }

    #[test]
    fn an_unknown_field_is_refused_by_name_at_every_level() {
        // The spec, its model, the class of that, base, PAG, and two stages with a size each.
        let spec = 9;
        refuses_unknown(&crate::spec::tests::spec(), spec);
        refuses_unknown(&Settings::new(crate::spec::tests::spec()), 1 + spec);
        // Besides `from`: the request, its base, its format.
        refuses_unknown(&request(), 3 + spec);
        // Besides the request: the record, its picture, the size of that.
        refuses_unknown(&record(), 3 + 3 + spec);
        refuses_unknown(&plan_file(), 2);
    }

    #[test]
    fn what_was_meant_is_proposed() {
        let said = |json: &str| read::<RenderRequest>(json.as_bytes()).unwrap_err().to_string();
        let error = said(r#"{"prompt":"x","model":"synthetic","guidence_scale":3}"#);
        assert!(error.contains("`guidence_scale`") && error.contains("are guidance_scale,"), "{error}");
        assert!(!error.contains("negative_prompt") && error.contains("line 1 column"), "{error}");
        assert!(said(r#"{"steps":1,"steps":2}"#).contains("duplicate field `steps`"));
    }

    #[test]
    fn a_version_of_the_future_is_refused_by_number_before_its_names() {
        fn check<T: Versioned + Serialize + std::fmt::Debug>(whole: &T, at: &str, known: u32) {
            let mut value = serde_json::to_value(whole).unwrap();
            value["of a later release"] = json!({});
            *value.pointer_mut(at).unwrap() = json!(known + 1);
            let error = read::<T>(value.to_string().as_bytes()).unwrap_err();
            let Unreadable::Version(VersionError { found, newest, .. }) = error else { panic!("{error}") };
            assert_eq!((found, newest), (u64::from(known) + 1, known), "{at}");
        }
        check(&crate::spec::tests::spec(), "/version", SPEC_VERSION);
        check(&Settings::new(crate::spec::tests::spec()), "/spec/version", SPEC_VERSION);
        check(&request(), "/from/version", SPEC_VERSION);
        check(&record(), "/version", VERSION);
        check(&record(), "/request/from/version", SPEC_VERSION);
        check(&plan_file(), "/version", 1);
        for json in [r#"{"sharper":1,"version":2}"#, r#"{"version":0}"#] {
            let error = read::<RenderRequest>(json.as_bytes()).unwrap_err();
            assert!(matches!(error, Unreadable::Version(_)), "{error}");
        }
        assert!(read::<RenderRequest>(br#"{"version":1}"#).is_ok() && read::<RenderRequest>(b"{}").is_ok());
        assert!(read::<RenderSpec>(b"{}").unwrap_err().to_string().contains("`version`"));
    }
}
