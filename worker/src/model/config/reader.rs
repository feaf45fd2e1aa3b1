//! Typed access to one JSON configuration file, with errors that name file, key and value.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::model::error::LoadError;
use crate::model::files::ModelFiles;

/// The largest count that any configuration can mean.
const MAX_COUNT: u64 = 1 << 20;

/// One configuration file. Remembers which keys were read, so that the others can be reported.
pub(crate) struct Reader {
    file: String,
    map: Map<String, Value>,
    read: RefCell<BTreeSet<String>>,
}

impl Reader {
    /// Opens `path`, which must hold a JSON object.
    pub(crate) fn open(files: &ModelFiles, path: &str) -> Result<Self, LoadError> {
        let file = files.name(path);
        match files.json(path)? {
            Value::Object(map) => Ok(Self { file, map, read: RefCell::default() }),
            _ => Err(LoadError::Json { file, reason: "it must be an object".into() }),
        }
    }

    /// The value, or `None` where it is missing or null.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.read.borrow_mut().insert(key.to_owned());
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Every key of the file.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    /// Whether the key is there and null, which some formats tell from its absence.
    pub(crate) fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    /// An error about `key`.
    pub(crate) fn error(&self, key: &str, expected: impl Into<String>) -> LoadError {
        LoadError::Config {
            file: self.file.clone(),
            key: key.into(),
            value: self.map.get(key).map_or("missing".into(), Value::to_string),
            expected: expected.into(),
        }
    }

    /// A count; `default` where it is missing.
    pub(crate) fn usize_or(&self, key: &str, default: usize) -> Result<usize, LoadError> {
        self.get(key).map_or(Ok(default), |v| {
            let count = v.as_u64().filter(|&n| n <= MAX_COUNT).map(|n| n as usize);
            count.ok_or_else(|| self.error(key, format!("a whole number up to {MAX_COUNT} is needed")))
        })
    }

    /// A count that must be there, at least 1.
    pub(crate) fn size(&self, key: &str) -> Result<usize, LoadError> {
        self.size_up_to(key, MAX_COUNT as usize)
    }

    /// The same, at most `most`.
    pub(crate) fn size_up_to(&self, key: &str, most: usize) -> Result<usize, LoadError> {
        match self.get(key).and_then(Value::as_u64) {
            Some(n) if (1..=most as u64).contains(&n) => Ok(n as usize),
            Some(n) if n > most as u64 => Err(self.error(key, format!("at most {most} is supported"))),
            _ => Err(self.error(key, "a whole number above 0 is needed")),
        }
    }

    /// The same; `default` where it is missing.
    pub(crate) fn size_or(&self, key: &str, default: usize, most: usize) -> Result<usize, LoadError> {
        if self.get(key).is_none() { Ok(default) } else { self.size_up_to(key, most) }
    }

    /// A number; `default` where it is missing.
    pub(crate) fn f64_or(&self, key: &str, default: f64) -> Result<f64, LoadError> {
        self.get(key).map_or(Ok(default), |v| v.as_f64().ok_or_else(|| self.error(key, "a number is needed")))
    }

    /// A number above 0 that is one in f32 too; `default` where it is missing.
    pub(crate) fn positive_or(&self, key: &str, default: f64) -> Result<f64, LoadError> {
        let value = self.f64_or(key, default)?;
        let narrow = value as f32;
        if narrow.is_normal() && narrow > 0.0 {
            return Ok(value);
        }
        Err(self.error(key, "a number above 0 is needed, in the range of f32"))
    }

    /// True or false; `default` where it is missing.
    pub(crate) fn bool_or(&self, key: &str, default: bool) -> Result<bool, LoadError> {
        self.get(key)
            .map_or(Ok(default), |v| v.as_bool().ok_or_else(|| self.error(key, "true or false is needed")))
    }

    /// A text; `default` where it is missing.
    pub(crate) fn str_or<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str, LoadError> {
        self.get(key).map_or(Ok(default), |v| v.as_str().ok_or_else(|| self.error(key, "a text is needed")))
    }

    /// A list of texts that must be there.
    pub(crate) fn strings(&self, key: &str) -> Result<Vec<String>, LoadError> {
        let list = self.get(key).and_then(Value::as_array);
        list.and_then(|l| l.iter().map(|v| v.as_str().map(str::to_owned)).collect())
            .ok_or_else(|| self.error(key, "a list of texts is needed"))
    }

    /// A list of counts up to `most` that must be there and not be empty.
    pub(crate) fn sizes(&self, key: &str, most: usize) -> Result<Vec<usize>, LoadError> {
        let list = self.get(key).and_then(Value::as_array);
        list.and_then(|l| l.iter().map(|v| v.as_u64().map(|n| n as usize)).collect())
            .filter(|l: &Vec<usize>| !l.is_empty() && l.iter().all(|n| (1..=most).contains(n)))
            .ok_or_else(|| self.error(key, format!("a list of whole numbers from 1 to {most} is needed")))
    }

    /// One count for all `n` places, or a list of `n`, each up to `most`.
    pub(crate) fn size_per(
        &self,
        key: &str,
        default: usize,
        n: usize,
        most: usize,
    ) -> Result<Vec<usize>, LoadError> {
        match self.get(key) {
            None => Ok(vec![default; n]),
            Some(Value::Array(_)) => {
                let list = self.sizes(key, most)?;
                if list.len() == n {
                    Ok(list)
                } else {
                    Err(self.error(key, format!("{n} numbers are needed")))
                }
            }
            Some(_) => Ok(vec![self.size_up_to(key, most)?; n]),
        }
    }

    /// Fails unless the value is missing, null, or one of `allowed`.
    pub(crate) fn require(&self, key: &str, allowed: &[Value]) -> Result<(), LoadError> {
        let Some(value) = self.get(key) else { return Ok(()) };
        if allowed.contains(value) {
            return Ok(());
        }
        let names: Vec<String> = allowed.iter().map(Value::to_string).collect();
        let allowed = if names.is_empty() { "null".into() } else { names.join(" or ") };
        Err(self.error(key, format!("only {allowed} is supported")))
    }

    /// Marks keys that decide nothing here.
    pub(crate) fn ignore(&self, keys: &[&str]) {
        self.read.borrow_mut().extend(keys.iter().map(|k| (*k).to_owned()));
    }

    /// Warns of keys with a value that nobody read: a newer format may mean something by them.
    pub(crate) fn warn_unread(&self) {
        let read = self.read.borrow();
        for (key, value) in &self.map {
            let off = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Number(number) => number.as_f64() == Some(0.0),
                Value::Array(list) => list.is_empty(),
                _ => false,
            };
            let quiet = off || key.starts_with('_');
            if !quiet && !read.contains(key) {
                tracing::warn!(file = %self.file, %key, %value, "unknown configuration key ignored");
            }
        }
    }
}

/// A configuration as it was understood, as text: what enters a fingerprint. Who wrote the file, which defaults it
/// spells out, and how it says the same thing make no difference.
pub(crate) fn canonical_config(config: &impl Serialize) -> String {
    let value = serde_json::to_value(config).expect("a configuration is made of numbers, texts and lists");
    canonical(&value)
}

/// Keys are sorted and numbers written by the standard library, so that no release of the JSON library changes a
/// fingerprint.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let items: BTreeMap<&String, String> = map.iter().map(|(k, v)| (k, canonical(v))).collect();
            let items: Vec<String> = items.into_iter().map(|(k, v)| format!("{k:?}:{v}")).collect();
            format!("{{{}}}", items.join(","))
        }
        Value::Array(list) => format!("[{}]", list.iter().map(canonical).collect::<Vec<_>>().join(",")),
        Value::Number(number) => match (number.as_u64(), number.as_f64()) {
            (Some(whole), _) => whole.to_string(),
            (None, Some(real)) => format!("{real:e}"),
            (None, None) => number.to_string(),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reader(value: Value) -> Reader {
        let Value::Object(map) = value else { unreachable!("tests pass objects") };
        Reader { file: "unet/config.json".into(), map, read: RefCell::default() }
    }

    #[test]
    fn errors_name_file_key_and_value() {
        let r = reader(json!({"act_fn": "mish", "sample_size": -1}));
        assert_eq!(
            r.require("act_fn", &[json!("silu"), json!("swish")]).unwrap_err().to_string(),
            "unet/config.json: `act_fn` is \"mish\"; only \"silu\" or \"swish\" is supported"
        );
        assert_eq!(
            r.size("sample_size").unwrap_err().to_string(),
            "unet/config.json: `sample_size` is -1; a whole number above 0 is needed"
        );
        assert!(r.sizes("absent", 9).unwrap_err().to_string().contains("`absent` is missing"));
    }

    #[test]
    fn numbers_that_vanish_in_f32_are_refused() {
        let r = reader(json!({"a": 1e-60, "b": 0, "c": -1.0, "d": "NaN", "e": 1e60, "f": 1e-5}));
        for key in ["a", "b", "c", "d", "e"] {
            assert!(r.positive_or(key, 1.0).unwrap_err().to_string().contains(&format!("`{key}` is")));
        }
        assert_eq!((r.positive_or("f", 1.0).unwrap(), r.positive_or("g", 2.0).unwrap()), (1e-5, 2.0));
    }

    #[test]
    fn one_number_stands_for_all_places() {
        let r = reader(json!({"a": 2, "b": [1, 2, 3]}));
        assert_eq!(r.size_per("a", 9, 3, 9).unwrap(), [2, 2, 2]);
        assert_eq!(r.size_per("b", 9, 3, 9).unwrap(), [1, 2, 3]);
        assert_eq!(r.size_per("c", 9, 2, 9).unwrap(), [9, 9]);
        assert!(r.size_per("b", 9, 2, 9).is_err());
        assert!(r.size_per("b", 9, 3, 2).is_err());
        assert!(r.size_per("a", 9, 3, 1).unwrap_err().to_string().contains("at most 1 is supported"));
    }

    #[test]
    fn the_canonical_form_is_that_of_the_meaning() {
        #[derive(Serialize)]
        struct Config {
            width: usize,
            eps: f64,
            depths: Option<Vec<usize>>,
        }
        let config = Config { width: 320, eps: 1e-5, depths: Some(vec![1, 2]) };
        assert_eq!(canonical_config(&config), r#"{"depths":[1,2],"eps":1e-5,"width":320}"#);
    }
}
