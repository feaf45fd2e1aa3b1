//! Settings from arguments, the environment and files.

use clap::Arg;

use super::*;

fn command() -> Command {
    let flag = |name: &'static str| Arg::new(name).long(name);
    Command::new("app").subcommand(
        Command::new("paint")
            .arg(flag("test-colour").default_value("grey"))
            .arg(flag("test-sizes").value_delimiter(',').action(ArgAction::Append))
            .arg(flag("test-own").default_value("none"))
            .arg(flag("test-loud").action(ArgAction::SetTrue))
            .arg(flag("test-seeds")),
    )
}

const RULES: Rules = Rules {
    own_flags: &[("paint", &["test-own"])],
    joined: &["test-seeds"],
    bare: &["script"],
    ..Rules::EMPTY
};

fn paint(toml: &str, args: &[&str]) -> Result<(String, Vec<String>, bool), String> {
    let table: Table = toml.parse().unwrap();
    check(&command(), &table)?;
    let command = with_defaults(command(), &table, &[], &[], &RULES)?;
    let matches = command.try_get_matches_from(["app", "paint"].iter().chain(args)).unwrap();
    let (_, paint) = matches.subcommand().unwrap();
    let sizes = paint.get_many::<String>("test-sizes").unwrap_or_default().cloned().collect();
    let colour = paint.get_one::<String>("test-colour").unwrap().clone();
    Ok((colour, sizes, paint.get_flag("test-loud")))
}

#[test]
fn what_is_typed_wins_over_the_file_and_inner_tables_over_outer_ones() {
    assert_eq!(paint("", &[]), Ok(("grey".into(), vec![], false)));
    let file = "test-colour = 'red'\n[paint]\ntest-colour = 'blue'\ntest-sizes = [1, 2]\ntest-loud = true";
    assert_eq!(paint(file, &[]), Ok(("blue".into(), vec!["1".into(), "2".into()], true)));
    let typed = paint(file, &["--test-colour", "green", "--test-sizes", "7"]).unwrap();
    assert_eq!(typed, ("green".into(), vec!["7".into()], true));
    assert_eq!(paint("test-colour = 'red'", &[]).unwrap().0, "red");
}

#[test]
fn a_flag_of_a_commands_own_is_not_set_from_outside() {
    let own = |toml: &str| {
        let table: Table = toml.parse().unwrap();
        let command = with_defaults(command(), &table, &[], &[], &RULES).unwrap();
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
    const EXCLUDING: Rules =
        Rules { precedence: &[Precedence { typed: &["test-loud"], alone: &["test-sizes"] }], ..Rules::EMPTY };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("s.toml");
    std::fs::write(&file, "test-sizes = [1, 2]\ntest-colour = 'red'").unwrap();
    let sizes = |typed: &[&str]| {
        let config = ["app", "paint", "--config", file.to_str().unwrap()];
        let args: Vec<OsString> = config.iter().chain(typed).map(OsString::from).collect();
        let command = command().arg(Arg::new("config").long("config").global(true));
        let matches = apply(command, &args, &EXCLUDING).unwrap().command.try_get_matches_from(args).unwrap();
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

#[test]
fn a_list_is_taken_only_where_several_values_are() {
    let value = |toml: &str, flag: &str| {
        let table: Table = toml.parse().unwrap();
        let command = with_defaults(command(), &table, &[], &[], &RULES)?;
        let matches = command.try_get_matches_from(["app", "paint"]).unwrap();
        let values = matches.subcommand().unwrap().1.get_many::<String>(flag);
        Ok::<_, String>(values.unwrap_or_default().cloned().collect::<Vec<_>>())
    };
    assert_eq!(value("test-sizes = [2, 4]", "test-sizes").unwrap(), ["2", "4"]);
    assert_eq!(value("test-seeds = [1, '3..4']", "test-seeds").unwrap(), ["1,3..4"]);
    assert_eq!(value("test-seeds = 7", "test-seeds").unwrap(), ["7"]);
    for (wrong, flag) in [("test-seeds = []", "test-seeds"), ("test-colour = []", "test-colour")] {
        let error = value(wrong, flag).unwrap_err();
        assert!(error.contains(&format!("`{flag}` takes a value, and the list has none")), "{error}");
    }
    for wrong in ["test-colour = ['red', 'blue']", "test-colour = ['red']"] {
        let error = value(wrong, "test-colour").unwrap_err();
        assert!(error.contains("`test-colour` takes one value"), "{error}");
    }
    let error = value("test-loud = [true]", "test-loud").unwrap_err();
    assert!(error.contains("`test-loud` takes one value"), "{error}");
    let error = value("test-sizes = [[1, 2], [3]]", "test-sizes").unwrap_err();
    assert!(error.contains("of the kind array"), "{error}");
}

#[test]
fn a_variable_that_sets_nothing_is_named_with_the_nearest_that_does() {
    let flags: Vec<String> = ["steps", "guidance-scale", "token-file", "store"].map(str::to_owned).into();
    let remark = |name: &str, only_slips: bool| variables::remark(&flags, name, only_slips);
    assert_eq!(
        remark("GIGASMITH_STEPZ", true).unwrap(),
        "GIGASMITH_STEPZ sets nothing: is GIGASMITH_STEPS meant?"
    );
    assert!(remark("GIGASMITH_TOKENFILE", true).unwrap().contains("GIGASMITH_TOKEN_FILE"));
    assert!(remark("GIGASMITH_GUIDANCE", false).unwrap().contains("GIGASMITH_GUIDANCE_SCALE"));
    assert!(remark("GIGASMITH_WEATHER", false).unwrap().contains("no flag has that name"));
    assert_eq!(remark("GIGASMITH_WEATHER", true), None, "another program's, perhaps");
    let fine =
        ["STEPS", "CONFIG", "ISA", "TEST_ANSWERS", "SIM_SEED", "SERVICE_HOST", "SERVICE_PORT_GRPC", "PORT"];
    for name in fine.iter().chain(&["PORT_7464_TCP_ADDR", "COORDINATOR_SERVICE_HOST", "COORDINATOR_PORT"]) {
        assert_eq!(remark(&format!("GIGASMITH_{name}"), false), None, "{name}");
    }
    assert_eq!(remark("HOME", false), None);
}

/// What a file that nobody named decides, as a command that talks to a coordinator reads it.
fn implicit(folder: &Path, toml: &str, given: &[&str]) -> Result<(), String> {
    let file = folder.join("gigasmith.toml");
    std::fs::write(&file, toml).unwrap();
    let table: Table = toml.parse().unwrap();
    implicit::check(&file, |flag| table.get(flag), |flag| given.contains(&flag))
}

#[test]
fn a_file_that_nobody_named_tells_no_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let (inside, outside) = (folder.path().join("farm"), folder.path().join("secret"));
    std::fs::create_dir(&inside).unwrap();
    std::fs::write(&outside, "a secret of sixteen").unwrap();
    std::fs::write(inside.join("token"), "a token of sixteen").unwrap();
    let at = |path: &Path| format!("coordinator = 'https://farm.example'\ntoken-file = '{}'", path.display());
    let check = |toml: &str, given: &[&str]| implicit(&inside, toml, given);
    assert_eq!(check(&at(&inside.join("token")), &[]), Ok(()));
    assert_eq!(check("model = 'pocket'", &["token-file"]), Ok(()), "it decides nothing of that");
    assert_eq!(check(&at(&inside.join("missing")), &[]), Ok(()), "reading it will tell");
    for path in [outside.clone(), inside.join("../secret")] {
        let error = check(&at(&path), &[]).unwrap_err();
        assert!(error.contains("outside the folder") && error.contains("--config"), "{error}");
        assert_eq!(check(&at(&path), &["token-file", "coordinator"]), Ok(()), "what is given wins over it");
    }
    assert!(check(&format!("tls-key = '{}'", outside.display()), &[]).unwrap_err().contains("`tls-key`"));
    let error = check("coordinator = 'https://farm.example'", &["token-file"]).unwrap_err();
    assert!(error.contains("--coordinator https://farm.example"), "{error}");
    assert_eq!(check("coordinator = 'https://farm.example'", &["token-file", "coordinator"]), Ok(()));
}

#[cfg(unix)]
#[test]
fn links_out_of_the_folder_and_files_of_everybodys_are_refused() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("farm");
    std::fs::create_dir(&inside).unwrap();
    std::fs::write(folder.path().join("secret"), "a secret of sixteen").unwrap();
    std::os::unix::fs::symlink("../secret", inside.join("token")).unwrap();
    let toml = format!("token-file = '{}'", inside.join("token").display());
    assert!(implicit(&inside, &toml, &[]).unwrap_err().contains("outside the folder"));
    let file = inside.join("gigasmith.toml");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
    let error = implicit(&inside, "coordinator = 'http://127.0.0.1:1'", &[]).unwrap_err();
    assert!(error.contains("everybody may write"), "{error}");
    assert_eq!(implicit(&inside, "model = 'pocket'", &[]), Ok(()));
}

#[test]
fn what_only_asks_for_words_needs_no_settings() {
    let runs = |args: &[&str]| {
        let args: Vec<OsString> =
            std::iter::once("app").chain(args.iter().copied()).map(OsString::from).collect();
        running(&command().subcommand(Command::new("script")), &args, &RULES)
    };
    for words in [&["--help"][..], &["-h"], &["paint", "--help"], &["help", "paint"], &["script"], &[]] {
        assert_eq!(runs(words), None, "{words:?}");
    }
    for work in [&["paint"][..], &["paint", "--test-colour", "red"], &["paint", "--no-such-flag"]] {
        assert_eq!(runs(work).as_deref(), Some("paint"), "{work:?}");
    }
}

#[test]
fn a_mistake_in_the_file_is_pointed_at() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("s.toml");
    std::fs::write(&file, "[paint]\ntest-colour = \n").unwrap();
    let args: Vec<OsString> =
        ["app", "paint", "--config", file.to_str().unwrap()].iter().map(OsString::from).collect();
    let error = apply(command(), &args, &RULES).unwrap_err().to_string();
    let lines: Vec<&str> = error.lines().collect();
    let (text, mark) =
        (lines.iter().position(|l| l.contains("test-colour =")), lines.iter().position(|l| l.contains('^')));
    assert!(text.is_some() && text.map(|t| t + 1) == mark, "{error}");
}
