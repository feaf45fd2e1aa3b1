//! Settings beside the command line: every flag also from the environment and from a TOML file.
//!
//! What is typed wins over the environment (`GIGASMITH_` and the flag's name in capitals), which wins over
//! the file, which wins over what is built in. The file is named by `--config` or `GIGASMITH_CONFIG`, else
//! it is `gigasmith.toml` in the working folder, if there is one. It has a table per command; what stands
//! outside every table holds for all commands that have such a flag:
//!
//! ```toml
//! coordinator = "https://farm.example:7464"
//! token-file = "token"
//!
//! [worker]
//! model = "stabilityai/stable-diffusion-xl-base-1.0"
//! ```
//!
//! A file that nobody named may have come with somebody else's folder: `implicit.rs` says what it may decide.
//! Help, a version and what prints a script for the shell need no settings, and survive a broken file.

mod implicit;
#[cfg(test)]
mod tests;
mod values;
mod variables;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::FalseyValueParser;
use clap::{ArgAction, Command};
use toml::{Table, Value};

use values::typed;

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
    /// Flags whose one value is itself a list with commas: a list in the file becomes that.
    pub joined: &'static [&'static str],
    /// Commands that need no settings.
    pub bare: &'static [&'static str],
}

impl Rules {
    /// No rules.
    pub const EMPTY: Self = Self { precedence: &[], own_table: None, own_flags: &[], joined: &[], bare: &[] };
}

/// A command with its settings.
#[derive(Debug)]
pub struct Applied {
    /// The command; its defaults are the settings.
    pub command: Command,
    /// What the user should know, a sentence each.
    pub warnings: Vec<String>,
}

/// Finds the settings file that the arguments or the environment name, or the one in the working folder,
/// and gives `command` the settings of it and of the environment as its defaults.
pub fn apply(command: Command, args: &[OsString], rules: &Rules) -> Result<Applied, SettingsError> {
    let Some(runs) = running(&command, args, rules) else {
        return Ok(Applied { command, warnings: Vec::new() });
    };
    let named = named(args).or_else(|| std::env::var_os(VARIABLE).map(PathBuf::from));
    let path = named.clone().unwrap_or_else(|| DEFAULT_FILE.into());
    let fail = |reason: String| SettingsError { path: path.clone(), reason };
    let table = match std::fs::read_to_string(&path) {
        // In lines of its own: it points at the place.
        Ok(text) => {
            text.parse::<Table>().map_err(|e| fail(format!("it is no TOML\n{}", e.to_string().trim_end())))?
        }
        Err(_) if named.is_none() && !path.exists() => Table::new(),
        Err(error) => return Err(fail(error.to_string())),
    };
    let table = match rules.own_table {
        None => table,
        Some(own) => own_settings(&command, table, own),
    };
    check(&command, &table).map_err(fail)?;
    let is_typed = |flag: &str| is_typed(args, flag);
    // `serve` shows its token to nobody.
    if named.is_none() && has_flag(&command, &runs, implicit::ADDRESS) {
        let given = |flag: &str| is_typed(flag) || variables::value(flag).is_some();
        implicit::check(&path, |flag| setting(&command, &table, &runs, flag), given).map_err(fail)?;
    }
    let excluded: Vec<&str> = rules
        .precedence
        .iter()
        .filter(|p| p.typed.iter().any(|flag| is_typed(flag)))
        .flat_map(|p| p.alone.iter().copied())
        .collect();
    let warnings = variables::unknown(&all_flags(&command), rules.own_table.is_some());
    let command = with_defaults(command, &table, &[], &excluded, rules).map_err(fail)?;
    Ok(Applied { command, warnings })
}

/// The command that the arguments run; `None` where they only ask for words, or it needs no settings.
fn running(command: &Command, args: &[OsString], rules: &Rules) -> Option<String> {
    // Help and version come as errors; others are told when the settings are there.
    let matches = command.clone().ignore_errors(true).try_get_matches_from(args).ok()?;
    match (matches.subcommand_name(), command.has_subcommands()) {
        (None, true) => None,
        (None, false) => Some(command.get_name().to_owned()),
        (Some(name), _) => (!rules.bare.contains(&name)).then(|| name.to_owned()),
    }
}

/// Whether a flag stands among the arguments.
fn is_typed(args: &[OsString], flag: &str) -> bool {
    let flag = format!("--{flag}");
    let is = |a: &str| a == flag || a.strip_prefix(&flag).is_some_and(|rest| rest.starts_with('='));
    args.iter().filter_map(|a| a.to_str()).any(is)
}

/// Whether the command that runs has a flag.
fn has_flag(command: &Command, runs: &str, flag: &str) -> bool {
    flags(command.find_subcommand(runs).unwrap_or(command)).any(|f| f == flag)
}

/// What the file says about a flag of the command that runs.
fn setting<'a>(command: &Command, table: &'a Table, runs: &str, flag: &str) -> Option<&'a Value> {
    if !has_flag(command, runs, flag) {
        return None;
    }
    let own = table.get(runs).and_then(Value::as_table).and_then(|own| own.get(flag));
    own.or_else(|| table.get(flag))
}

/// Long names of all settings of a command and those below it.
fn all_flags(command: &Command) -> Vec<String> {
    let mut all: Vec<String> = flags(command).map(str::to_owned).collect();
    command.get_subcommands().for_each(|sub| all.extend(all_flags(sub)));
    all.sort_unstable();
    all.dedup();
    all
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
            (_, Value::Table(_)) if knows(key) => {
                return Err(format!("`{key}` takes a value, not a table: write {key} = \"...\""));
            }
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
    rules: &Rules,
) -> Result<Command, String> {
    let name = command.get_name().to_owned();
    let is_own = |flag: &str| rules.own_flags.iter().any(|(c, flags)| *c == name && flags.contains(&flag));
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
        let variable = variables::of(&long);
        // The help says once that every flag has one.
        let arg = match std::env::var_os(&variable) {
            // Set to nothing, as compose does, is not set.
            Some(value) if value.is_empty() => arg,
            _ if is_own(&long) => arg,
            _ => arg.env(variable).hide_env(true),
        };
        let scopes = if is_own(&long) { &scopes[..1] } else { &scopes[..] };
        let found = scopes.iter().find_map(|t| t.get(&long).filter(|v| !v.is_table()));
        match found.map(|value| typed(&arg, value, rules.joined)) {
            None => arg,
            Some(Ok(values)) if values.is_empty() => arg,
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
            with_defaults(sub.clone(), below, &scopes, excluded, rules).unwrap_or_else(|reason| {
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
