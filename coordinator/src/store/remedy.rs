//! What a store's error says, and what to do about it.
//!
//! Pure: from the words of the client, and of the server, to a sentence. Only what is understood is added;
//! nothing is left out.

use std::error::Error;

/// What to do about a failure of a store that is named by a URL, by words of the error. The first that fits.
const REMEDIES: [(&[&str], &str); 14] = [
    (
        &["metadata.google.internal"],
        "no credentials were found: set GOOGLE_APPLICATION_CREDENTIALS to a key file, or run \
         `gcloud auth application-default login`",
    ),
    (
        &["metadata/identity", "IDENTITY_ENDPOINT"],
        "no credentials were found: set AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
    ),
    (
        &["latest/api/token", "latest/meta-data", "169.254.169.254"],
        "no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Profiles and logins of ~/.aws are \
         not read; with them: eval \"$(aws configure export-credentials --format env)\"",
    ),
    (
        &["ExpiredToken", "TokenRefreshRequired", "token has expired", "InvalidToken"],
        "the credentials have expired: renew them",
    ),
    (
        &["RequestTimeTooSkewed", "Signature not valid in the specified time frame"],
        "this machine's clock is wrong: set it",
    ),
    (
        &[
            "NoSuchBucket",
            "ContainerNotFound",
            "The specified bucket does not exist",
            "The specified container does not exist",
        ],
        "make the bucket, or mend the URL",
    ),
    (
        &[
            "PermanentRedirect",
            "AuthorizationHeaderMalformed",
            "IllegalLocationConstraint",
            "incorrectly configured region",
        ],
        "set AWS_REGION to the bucket's region",
    ),
    (
        &[
            "SignatureDoesNotMatch",
            "InvalidAccessKeyId",
            "AccessDenied",
            "AuthenticationFailed",
            "AuthorizationFailure",
            "401 Unauthorized",
            "403 Forbidden",
        ],
        "the credentials are wrong, or may not do that",
    ),
    (&["?delete"], "set AWS_DISABLE_BULK_DELETE=true"),
    (&["No space left", "StorageFull", "no storage space"], "make room there"),
    (
        &["invalid peer certificate", "UnknownIssuer"],
        "its certificate is signed by no authority that is known here",
    ),
    (
        &["dns error", "failed to lookup", "Name or service not known"],
        "mend the URL or the endpoint (AWS_ENDPOINT_URL, GOOGLE_BASE_URL, AZURE_STORAGE_ENDPOINT), or the network",
    ),
    (
        &["onnection refused", "tcp connect", "timed out", "error sending request", "onnection reset"],
        "does its endpoint answer? (AWS_ENDPOINT_URL, GOOGLE_BASE_URL or AZURE_STORAGE_ENDPOINT, if set)",
    ),
    (&["SlowDown", "TooManyRequests", "ServerBusy"], "the store is overloaded: try again later"),
];

/// An error with its causes, and what to do about it.
pub(super) fn explained(error: &object_store::Error) -> String {
    let said = with_causes(error);
    let found = REMEDIES.iter().find(|(words, _)| words.iter().any(|w| said.contains(w)));
    match found {
        Some((_, remedy)) => format!("{said}; {remedy}"),
        None => said,
    }
}

/// The error's own words, and those of its causes that it does not repeat, in one line.
fn with_causes(error: &dyn Error) -> String {
    let mut said = one_line(&error.to_string());
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = one_line(&error.to_string());
        if !said.contains(&text) {
            said = format!("{said}: {text}");
        }
        cause = error.source();
    }
    said
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> String {
        explained(&object_store::Error::Generic { store: "S3", source: text.to_owned().into() })
    }

    #[test]
    fn what_can_be_done_is_said_and_nothing_is_left_out() {
        for (error, remedy) in [
            ("PUT http://169.254.169.254/latest/api/token: timed out", "export-credentials"),
            ("<Code>RequestTimeTooSkewed</Code>", "clock"),
            ("<Code>NoSuchBucket</Code>", "make the bucket"),
            ("<Code>AuthorizationHeaderMalformed</Code> expecting 'eu-west-1'", "AWS_REGION"),
            ("<Code>ExpiredToken</Code>", "renew"),
            ("403 Forbidden:", "credentials are wrong"),
            ("POST http://a/b?delete 501", "AWS_DISABLE_BULK_DELETE=true"),
            ("error sending request: tcp connect error: Connection refused", "does its endpoint answer"),
            ("dns error: failed to lookup address", "network"),
        ] {
            let text = said(error);
            assert!(text.contains(error) && text.contains(remedy), "{text}");
        }
        assert_eq!(said("the moon is full"), "Generic S3 error: the moon is full");
        assert_eq!(said("a\n   b").lines().count(), 1);
    }
}
