//! Stores that cannot be used, or only nearly: found out before a model is loaded, and said with the remedy.

use crate::bucket::{Bucket, Fault};
use crate::{ended, gigasmith, refused};

/// With a model that would be refused, were it looked at.
const WITHOUT_MODEL: [&str; 10] =
    ["render", "-p", "x", "--model", "no-model-here", "--name", "n", "--store", "s3://bucket/r", "-q"];
const WHOLE: [&str; 10] = ["render", "-p", "x", "--scale", "1", "--steps", "1", "--name", "n", "--store"];

fn unusable(fault: Fault, variables: &[(&str, &str)]) -> (Bucket, String) {
    let folder = tempfile::tempdir().unwrap();
    let bucket = Bucket::start(fault);
    let (code, said) = ended(bucket.run(folder.path(), &WITHOUT_MODEL, variables));
    assert_eq!(code, Some(5), "{said}");
    assert_eq!(said.lines().count(), 1, "one message: {said}");
    assert!(bucket.keys().is_empty(), "the probe leaves nothing: {:?}", bucket.keys());
    (bucket, said)
}

#[test]
fn a_plain_endpoint_is_named_with_its_permission_before_anything_is_sent() {
    let (bucket, said) = unusable(Fault::Nothing, &[("AWS_ALLOW_HTTP", "")]);
    assert!(said.contains("AWS_ALLOW_HTTP=true"), "{said}");
    assert!(bucket.requests().is_empty());
}

#[test]
fn a_store_without_conditional_writes_is_refused() {
    let (bucket, said) = unusable(Fault::NoConditions, &[]);
    assert!(said.contains("If-None-Match: *"), "{said}");
    assert!(bucket.requests().iter().all(|r| r.contains("/coordinator/probe-")), "{:?}", bucket.requests());
}

#[test]
fn a_store_that_ignores_conditions_or_knows_no_bulk_deletion_works() {
    let folder = tempfile::tempdir().unwrap();
    let run = |fault: Fault| {
        let bucket = Bucket::start(fault);
        let (code, said) = ended(bucket.run(folder.path(), &[&WHOLE[..], &["s3://bucket/r"]].concat(), &[]));
        assert_eq!(code, Some(0), "{said}");
        let left = bucket.keys();
        assert!(left.iter().any(|k| k == "r/renders/n/results/00000001/result.png"), "{left:?}");
        assert!(!left.iter().any(|k| k.contains("probe-") || k.contains("/blobs/")), "{left:?}");
        assert!(!bucket.requests().iter().any(|r| r.starts_with("POST") && r.contains("delete")));
        said
    };
    assert!(run(Fault::IgnoresConditions).contains("ignores `If-None-Match: *`"));
    assert!(!run(Fault::Nothing).contains("warning"));
}

#[test]
fn credentials_that_are_not_read_are_said_to_be() {
    let none = [("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", ""), ("AWS_PROFILE", "farm")];
    let (_, said) = unusable(Fault::Nothing, &none);
    assert!(said.contains("eval \"$(aws configure export-credentials --format env)\""), "{said}");
    let (bucket, said) = unusable(Fault::Nothing, &[("AWS_SECRET_ACCESS_KEY", "")]);
    assert!(said.contains("set AWS_SECRET_ACCESS_KEY too"), "{said}");
    assert!(bucket.requests().is_empty());
}

#[test]
fn what_a_store_answers_is_said_with_what_to_do() {
    for (status, code, remedy) in [
        (403, "RequestTimeTooSkewed", "clock"),
        (403, "InvalidAccessKeyId", "credentials are wrong"),
        (404, "NoSuchBucket", "make the bucket"),
        (400, "AuthorizationHeaderMalformed", "AWS_REGION"),
        (400, "ExpiredToken", "renew"),
    ] {
        let (_, said) = unusable(Fault::Refuses(status, code), &[]);
        assert!(said.contains(code) && said.contains(remedy), "{said}");
    }
    // Nobody listens there.
    let (_, said) = unusable(Fault::Nothing, &[("AWS_ENDPOINT_URL", "http://127.0.0.1:9")]);
    assert!(said.contains("does its endpoint answer"), "{said}");
}

#[test]
fn looking_needs_no_right_to_write() {
    let folder = tempfile::tempdir().unwrap();
    let bucket = Bucket::start(Fault::ReadOnly);
    let (code, said) = ended(bucket.run(folder.path(), &["renders", "--store", "s3://bucket/r"], &[]));
    assert_eq!(code, Some(0), "{said}");
    let (_, said) = unusable(Fault::ReadOnly, &[]);
    assert!(said.contains("AccessDenied") && said.contains("may not do that"), "{said}");
}

#[test]
fn a_store_that_ends_with_the_program_keeps_no_renders() {
    let folder = tempfile::tempdir().unwrap();
    let store = ["render", "-p", "x", "--name", "n", "--store", "memory://"];
    refused(folder.path(), &store, 2, &["memory://", "ends with the program"]);
    refused(folder.path(), &["resume", "n", "--store", "memory://"], 2, &["ends with the program"]);
}

#[test]
fn a_name_of_several_seeds_stands_for_all_of_them_and_unnamed_renders_are_numbered_on_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let render = |more: &[&str]| {
        let output = gigasmith(
            at,
            &[&["render", "-p", "x", "--scale", "1", "--steps", "1", "--store", "st"], more].concat(),
        );
        let (code, said) = ended(output);
        assert_eq!(code, Some(0), "{said}");
        said
    };
    render(&["--name", "ms", "--seed", "1..3"]);
    let again = render(&["--name", "ms", "--seed", "2", "-o", "again.png"]);
    assert!(again.contains("render ms-2 was done already"), "{again}");
    assert!(render(&[]).contains("render r1 "), "names of one's own take no number");
    std::fs::remove_file(at.join("out-1.png")).unwrap();
    let (code, said) = ended(gigasmith(at, &["resume", "ms", "--store", "st", "-o", "all.png"]));
    assert_eq!(code, Some(0), "{said}");
    for seed in 1..=3 {
        assert!(at.join(format!("all-{seed}.png")).exists());
    }
    refused(at, &["resume", "nobody", "--store", "st"], 4, &["there is no render `nobody`"]);
}
