//! From a value in the file to what would be typed.

use clap::{Arg, ArgAction};
use toml::Value;

/// A value as it would be typed: one text, or several for a flag that takes several. `joined`: flags whose
/// one value is a list with commas.
pub(super) fn typed(arg: &Arg, value: &Value, joined: &[&str]) -> Result<Vec<String>, String> {
    let key = arg.get_long().unwrap_or_default();
    let Value::Array(values) = value else { return scalar(key, value).map(|text| vec![text]) };
    let texts: Vec<String> = values.iter().map(|v| scalar(key, v)).collect::<Result<_, _>>()?;
    if arg.get_value_delimiter().is_some() || matches!(arg.get_action(), ArgAction::Append) {
        return Ok(texts);
    }
    match (joined.contains(&key), &texts[..]) {
        (true, [_, ..]) => Ok(vec![texts.join(",")]),
        (_, []) => Err(format!("`{key}` takes a value, and the list has none: leave it out, or give one")),
        (false, _) => {
            Err(format!("`{key}` takes one value, not a list: leave one of them, without brackets"))
        }
    }
}

fn scalar(key: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Boolean(flag) => Ok(flag.to_string()),
        _ => Err(format!(
            "`{key}` has a value of the kind {}: give a string, a number, true or false, or a list of them",
            value.type_str()
        )),
    }
}
