//! Variables of the environment: those that set a flag, and those that look as if they did.

use strsim::damerau_levenshtein;

const PREFIX: &str = "GIGASMITH_";
/// Those that set no flag and mean something.
const OTHERS: [&str; 2] = ["CONFIG", "ISA"];
/// What begins so is for the project's own tests and benchmarks.
const OF_TESTS: [&str; 7] = ["BENCH_", "FAULT", "FUZZ_", "KILLS", "PYTHON", "SIM_", "TEST_"];
/// Edits that a slip of the finger takes at the most.
const SLIP: usize = 2;

/// The variable of a flag.
pub(super) fn of(flag: &str) -> String {
    format!("{PREFIX}{}", flag.replace('-', "_").to_uppercase())
}

/// What the environment says about a flag. Set to nothing, as compose does, is not set.
pub(super) fn value(flag: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(of(flag)).filter(|value| !value.is_empty())
}

/// A sentence for each variable that sets nothing. `only_slips`: of those alone that are nearly one of ours;
/// the others may be another program's of the same farm.
pub(super) fn unknown(flags: &[String], only_slips: bool) -> Vec<String> {
    let mut names: Vec<String> = std::env::vars_os()
        .filter_map(|(name, value)| name.into_string().ok().filter(|_| !value.is_empty()))
        .collect();
    names.sort_unstable();
    names.iter().filter_map(|name| remark(flags, name, only_slips)).collect()
}

/// What to say about a variable; `None` when it is one of ours, or nobody meant us.
pub(super) fn remark(flags: &[String], name: &str, only_slips: bool) -> Option<String> {
    let rest = name.strip_prefix(PREFIX)?;
    let known: Vec<String> = flags.iter().map(|flag| of(flag)).collect();
    let is_ours = known.iter().any(|k| k == name) || OTHERS.contains(&rest);
    if is_ours || OF_TESTS.iter().any(|prefix| rest.starts_with(prefix)) || is_of_a_cluster(rest) {
        return None;
    }
    let nearest = known.iter().min_by_key(|k| damerau_levenshtein(k, name))?;
    let edits = damerau_levenshtein(nearest, name);
    let starts = known.iter().find(|k| rest.len() > 3 && k.starts_with(name));
    match (edits <= SLIP, starts) {
        (true, _) => Some(format!("{name} sets nothing: is {nearest} meant?")),
        (false, _) if only_slips => None,
        (false, Some(longer)) => Some(format!("{name} sets nothing: is {longer} meant?")),
        (false, None) => Some(format!("{name} sets nothing: no flag has that name")),
    }
}

/// Kubernetes tells every container of services: `GIGASMITH_SERVICE_HOST`, `GIGASMITH_PORT_7464_TCP`.
fn is_of_a_cluster(rest: &str) -> bool {
    let words: Vec<&str> = rest.split('_').collect();
    let is_port = words
        .iter()
        .position(|w| *w == "PORT")
        .is_some_and(|at| words.get(at + 1).is_none_or(|next| next.bytes().all(|b| b.is_ascii_digit())));
    rest.contains("SERVICE_HOST") || rest.contains("SERVICE_PORT") || is_port
}
