//! Settings beside the command line: every flag also from the environment and from a TOML file.
//!
//! What is typed wins over the environment (`GIGASMITH_` and the flag's name in capitals), which wins over
//! the file, which wins over what is built in. The file is named by `--config` or `GIGASMITH_CONFIG`, else
//! it is `gigasmith.toml` in the working folder, if there is one. It has a table per command; what stands
//! outside every table holds for all commands that have such a flag:
//!
//! ```toml
//! coordinator = "https://farm.example:7464"
//! token-file = "/etc/gigasmith/token"
//!
//! [worker]
//! model = "stabilityai/stable-diffusion-xl-base-1.0"
//! ```

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Command;
use toml::{Table, Value};

/// The file that is read when none is named.
const DEFAULT_FILE: &str = "gigasmith.toml";
const VARIABLE: &str = "GIGASMITH_CONFIG";
/// Flags that name no setting.
const NOT_SETTINGS: [&str; 3] = ["help", "version", "config"];

/// A settings file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct SettingsError {
    path: PathBuf,
    reason: String,
}

/// Finds the settings file that the arguments or the environment name, or the one in the working folder,
/// and gives `command` the settings of it and of the environment as its defaults.
pub fn apply(command: Command, args: &[OsString]) -> Result<Command, SettingsError> {
    let named = named(args).or_else(|| std::env::var_os(VARIABLE).map(PathBuf::from));
    let path = named.clone().unwrap_or_else(|| DEFAULT_FILE.into());
    let fail = |reason: String| SettingsError { path: path.clone(), reason };
    let table = match std::fs::read_to_string(&path) {
        Ok(text) => text.parse::<Table>().map_err(|e| fail(e.to_string().trim().replace('\n', " ")))?,
        Err(_) if named.is_none() && !path.exists() => Table::new(),
        Err(error) => return Err(fail(error.to_string())),
    };
    check(&command, &table).map_err(fail)?;
    with_defaults(command, &table, &[]).map_err(|reason| SettingsError { path, reason })
}

/// The value of `--config` among the arguments.
fn named(args: &[OsString]) -> Option<PathBuf> {
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let Some(text) = arg.to_str() else { continue };
        match text.strip_prefix("--config") {
            Some("") => return args.next().map(PathBuf::from),
            Some(rest) if rest.starts_with('=') => return Some(Path::new(&rest[1..]).to_owned()),
            _ if text == "--" => return None,
            _ => {}
        }
    }
    None
}

/// Long names of a command's settings.
fn flags(command: &Command) -> impl Iterator<Item = &str> {
    command.get_arguments().filter_map(clap::Arg::get_long).filter(|name| !NOT_SETTINGS.contains(name))
}

/// Every key must be a flag somewhere below its table.
fn check(command: &Command, table: &Table) -> Result<(), String> {
    let knows = |name: &str| {
        fn below(command: &Command, name: &str) -> bool {
            flags(command).any(|f| f == name) || command.get_subcommands().any(|s| below(s, name))
        }
        below(command, name)
    };
    for (key, value) in table {
        match (command.find_subcommand(key), value) {
            (Some(sub), Value::Table(table)) => check(sub, table)?,
            (_, Value::Table(_)) => {
                let commands: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
                return Err(format!("[{key}] is no command; there are {}", commands.join(", ")));
            }
            _ if knows(key) => {}
            _ => {
                let mut known: Vec<&str> = flags(command).collect();
                known.extend(command.get_subcommands().flat_map(flags));
                known.sort_unstable();
                known.dedup();
                return Err(format!(
                    "`{key}` is no setting of {}; there are {}",
                    command.get_name(),
                    known.join(", ")
                ));
            }
        }
    }
    Ok(())
}

/// Gives every flag its variable and, where the file has one, its default.
fn with_defaults(command: Command, table: &Table, outer: &[&Table]) -> Result<Command, String> {
    let scopes: Vec<&Table> = std::iter::once(table).chain(outer.iter().copied()).collect();
    let mut problem = None;
    let mut command = command.mut_args(|arg| {
        let Some(long) = arg.get_long().filter(|l| !NOT_SETTINGS.contains(l)).map(str::to_owned) else {
            return arg;
        };
        let variable = format!("GIGASMITH_{}", long.replace('-', "_").to_uppercase());
        // The help says once that every flag has one.
        let arg = arg.env(variable).hide_env(true);
        let found = scopes.iter().find_map(|t| t.get(&long).filter(|v| !v.is_table()));
        match found.map(|value| plain(&long, value)) {
            None => arg,
            Some(Ok(values)) => arg.default_values(values),
            Some(Err(reason)) => {
                problem = Some(reason);
                arg
            }
        }
    });
    if let Some(problem) = problem {
        return Err(problem);
    }
    let names: Vec<String> = command.get_subcommands().map(|s| s.get_name().to_owned()).collect();
    for name in names {
        let empty = Table::new();
        let below = table.get(&name).and_then(Value::as_table).unwrap_or(&empty);
        let mut failed = None;
        command = command.mut_subcommand(name, |sub| {
            with_defaults(sub.clone(), below, &scopes).unwrap_or_else(|reason| {
                failed = Some(reason);
                sub
            })
        });
        if let Some(reason) = failed {
            return Err(reason);
        }
    }
    Ok(command)
}

/// A value as it would be typed.
fn plain(key: &str, value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::String(text) => Ok(vec![text.clone()]),
        Value::Integer(number) => Ok(vec![number.to_string()]),
        Value::Float(number) => Ok(vec![number.to_string()]),
        Value::Boolean(flag) => Ok(vec![flag.to_string()]),
        Value::Array(values) => {
            values.iter().map(|v| plain(key, v)).collect::<Result<Vec<_>, _>>().map(|v| v.concat())
        }
        _ => Err(format!(
            "`{key}` is a {}: give a string, a number, true or false, or a list of them",
            value.type_str()
        )),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Arg, ArgAction};

    use super::*;

    fn command() -> Command {
        let flag = |name: &'static str| Arg::new(name).long(name);
        Command::new("app").subcommand(
            Command::new("paint")
                .arg(flag("test-colour").default_value("grey"))
                .arg(flag("test-sizes").value_delimiter(',').action(ArgAction::Append))
                .arg(flag("test-loud").action(ArgAction::SetTrue)),
        )
    }

    fn paint(toml: &str, args: &[&str]) -> Result<(String, Vec<String>, bool), String> {
        let table: Table = toml.parse().unwrap();
        check(&command(), &table)?;
        let command = with_defaults(command(), &table, &[])?;
        let matches = command.try_get_matches_from(["app", "paint"].iter().chain(args)).unwrap();
        let (_, paint) = matches.subcommand().unwrap();
        let sizes = paint.get_many::<String>("test-sizes").unwrap_or_default().cloned().collect();
        let colour = paint.get_one::<String>("test-colour").unwrap().clone();
        Ok((colour, sizes, paint.get_flag("test-loud")))
    }

    #[test]
    fn what_is_typed_wins_over_the_file_and_inner_tables_over_outer_ones() {
        assert_eq!(paint("", &[]), Ok(("grey".into(), vec![], false)));
        let file =
            "test-colour = 'red'\n[paint]\ntest-colour = 'blue'\ntest-sizes = [1, 2]\ntest-loud = true";
        assert_eq!(paint(file, &[]), Ok(("blue".into(), vec!["1".into(), "2".into()], true)));
        let typed = paint(file, &["--test-colour", "green", "--test-sizes", "7"]).unwrap();
        assert_eq!(typed, ("green".into(), vec!["7".into()], true));
        assert_eq!(paint("test-colour = 'red'", &[]).unwrap().0, "red");
    }

    #[test]
    fn unknown_keys_and_tables_are_named() {
        let error = |toml: &str| paint(toml, &[]).unwrap_err();
        assert!(error("colr = 1").contains("`colr` is no setting"));
        assert!(error("[paint]\ncolr = 1").contains("test-colour"));
        assert!(error("[pant]\nx = 1").contains("[pant] is no command; there are paint"));
        assert!(error("[paint]\ntest-colour = 2020-01-01").contains("give a string"));
    }

    #[test]
    fn the_file_is_found_among_the_arguments() {
        let args = |list: &[&str]| named(&list.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(args(&["a", "--config", "x.toml"]), Some("x.toml".into()));
        assert_eq!(args(&["--config=y.toml"]), Some("y.toml".into()));
        assert_eq!(args(&["--", "--config=y.toml"]), None);
        assert_eq!(args(&["--configure", "x"]), None);
    }
}
