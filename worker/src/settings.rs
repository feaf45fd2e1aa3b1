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

use clap::builder::FalseyValueParser;
use clap::{ArgAction, Command};
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

/// What the environment and the file must leave alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct Precedence {
    /// When one of these flags is typed,
    pub typed: &'static [&'static str],
    /// these come from the command line alone: a typed `--scale` means that no `width` counts.
    pub alone: &'static [&'static str],
}

/// How a program reads its settings.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules {
    /// Which flags exclude settings.
    pub precedence: &'static [Precedence],
    /// For a program without subcommands: the table that is its own.
    pub own_table: Option<&'static str>,
    /// Commands, and flags of theirs that only the command line and the command's own table set: where another
    /// command's flag of that name means something else.
    pub own_flags: &'static [(&'static str, &'static [&'static str])],
}

impl Rules {
    /// No rules.
    pub const EMPTY: Self = Self { precedence: &[], own_table: None, own_flags: &[] };
}

/// Finds the settings file that the arguments or the environment name, or the one in the working folder,
/// and gives `command` the settings of it and of the environment as its defaults.
pub fn apply(command: Command, args: &[OsString], rules: &Rules) -> Result<Command, SettingsError> {
    let named = named(args).or_else(|| std::env::var_os(VARIABLE).map(PathBuf::from));
    let path = named.clone().unwrap_or_else(|| DEFAULT_FILE.into());
    let fail = |reason: String| SettingsError { path: path.clone(), reason };
    let table = match std::fs::read_to_string(&path) {
        Ok(text) => text.parse::<Table>().map_err(|e| fail(e.to_string().trim().replace('\n', " ")))?,
        Err(_) if named.is_none() && !path.exists() => Table::new(),
        Err(error) => return Err(fail(error.to_string())),
    };
    let table = match rules.own_table {
        None => table,
        Some(own) => own_settings(&command, table, own),
    };
    check(&command, &table).map_err(fail)?;
    let is_typed = |flag: &str| {
        let flag = format!("--{flag}");
        let is = |a: &str| a == flag || a.strip_prefix(&flag).is_some_and(|rest| rest.starts_with('='));
        args.iter().filter_map(|a| a.to_str()).any(is)
    };
    let excluded: Vec<&str> = rules
        .precedence
        .iter()
        .filter(|p| p.typed.iter().any(|flag| is_typed(flag)))
        .flat_map(|p| p.alone.iter().copied())
        .collect();
    with_defaults(command, &table, &[], &excluded, rules.own_flags)
        .map_err(|reason| SettingsError { path, reason })
}

/// A shared file as a program without subcommands reads it: its own table, and those outer keys that it
/// knows. The others are other programs'.
fn own_settings(command: &Command, mut table: Table, own: &str) -> Table {
    let inner = match table.remove(own) {
        Some(Value::Table(inner)) => inner,
        _ => Table::new(),
    };
    let known: Vec<String> = flags(command).map(str::to_owned).collect();
    table.retain(|key, value| !value.is_table() && known.iter().any(|k| k == key));
    table.extend(inner);
    table
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

/// Gives every flag that is not `excluded` its variable and, where the file has one, its default.
fn with_defaults(
    command: Command,
    table: &Table,
    outer: &[&Table],
    excluded: &[&str],
    own_flags: &[(&str, &[&str])],
) -> Result<Command, String> {
    let name = command.get_name().to_owned();
    let is_own = |flag: &str| own_flags.iter().any(|(c, flags)| *c == name && flags.contains(&flag));
    let scopes: Vec<&Table> = std::iter::once(table).chain(outer.iter().copied()).collect();
    let mut problem = None;
    let mut command = command.mut_args(|arg| {
        let Some(long) = arg.get_long().filter(|l| !NOT_SETTINGS.contains(l)).map(str::to_owned) else {
            return arg;
        };
        if excluded.contains(&long.as_str()) {
            return arg;
        }
        // `GIGASMITH_JSON=1` is as good as `true`.
        let arg = match arg.get_action() {
            ArgAction::SetTrue => arg.value_parser(FalseyValueParser::new()),
            _ => arg,
        };
        let variable = format!("GIGASMITH_{}", long.replace('-', "_").to_uppercase());
        // The help says once that every flag has one.
        let arg = match std::env::var_os(&variable) {
            // Set to nothing, as compose does, is not set.
            Some(value) if value.is_empty() => arg,
            _ if is_own(&long) => arg,
            _ => arg.env(variable).hide_env(true),
        };
        let scopes = if is_own(&long) { &scopes[..1] } else { &scopes[..] };
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
            with_defaults(sub.clone(), below, &scopes, excluded, own_flags).unwrap_or_else(|reason| {
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
    use clap::Arg;

    use super::*;

    fn command() -> Command {
        let flag = |name: &'static str| Arg::new(name).long(name);
        Command::new("app").subcommand(
            Command::new("paint")
                .arg(flag("test-colour").default_value("grey"))
                .arg(flag("test-sizes").value_delimiter(',').action(ArgAction::Append))
                .arg(flag("test-own").default_value("none"))
                .arg(flag("test-loud").action(ArgAction::SetTrue)),
        )
    }

    fn paint(toml: &str, args: &[&str]) -> Result<(String, Vec<String>, bool), String> {
        let table: Table = toml.parse().unwrap();
        check(&command(), &table)?;
        let command = with_defaults(command(), &table, &[], &[], &[("paint", &["test-own"])])?;
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
    fn a_flag_of_a_commands_own_is_not_set_from_outside() {
        let own = |toml: &str| {
            let table: Table = toml.parse().unwrap();
            let command = with_defaults(command(), &table, &[], &[], &[("paint", &["test-own"])]).unwrap();
            let matches = command.try_get_matches_from(["app", "paint"]).unwrap();
            matches.subcommand().unwrap().1.get_one::<String>("test-own").unwrap().clone()
        };
        assert_eq!(own("test-own = 'outer'"), "none");
        assert_eq!(own("test-own = 'outer'\n[paint]\ntest-own = 'inner'"), "inner");
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
    fn a_typed_flag_excludes_the_settings_it_contradicts() {
        const RULES: Rules = Rules {
            precedence: &[Precedence { typed: &["test-loud"], alone: &["test-sizes"] }],
            ..Rules::EMPTY
        };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("s.toml");
        std::fs::write(&file, "test-sizes = [1, 2]\ntest-colour = 'red'").unwrap();
        let sizes = |typed: &[&str]| {
            let config = ["app", "paint", "--config", file.to_str().unwrap()];
            let args: Vec<OsString> = config.iter().chain(typed).map(OsString::from).collect();
            let command = command().arg(Arg::new("config").long("config").global(true));
            let matches = apply(command, &args, &RULES).unwrap().try_get_matches_from(args).unwrap();
            let (_, paint) = matches.subcommand().unwrap();
            assert_eq!(paint.get_one::<String>("test-colour").unwrap(), "red");
            paint.get_many::<String>("test-sizes").map_or(0, Iterator::count)
        };
        assert_eq!((sizes(&[]), sizes(&["--test-loud"])), (2, 0));
    }

    #[test]
    fn a_program_without_subcommands_reads_its_own_table() {
        let table: Table =
            "test-colour = 'red'\nother = 1\n[paint]\ntest-loud = true\n[dance]\nx = 1".parse().unwrap();
        let paint = command().find_subcommand("paint").unwrap().clone();
        let own = own_settings(&paint, table, "paint");
        assert_eq!(own.keys().collect::<Vec<_>>(), ["test-colour", "test-loud"]);
        assert!(check(&paint, &own).is_ok());
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
