//! From a URL, or a plain folder, to an object store.

use std::sync::Arc;
use std::time::Duration;

use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreScheme, RetryConfig};
use url::Url;

use super::RenderStore;

/// A store that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the store {url}: {reason}")]
pub struct StoreUrlError {
    url: String,
    reason: String,
}

/// Options, over which a variable of one's own wins. A part of 8 MB takes its time on a slow line; objects are
/// deleted one by one here, for which many stores know no request for several.
const DEFAULTS: [(&str, &str); 2] = [("timeout", "180 seconds"), ("aws_disable_bulk_delete", "true")];

/// Retries of the client itself, and for how long.
const RETRIES: usize = 3;
const RETRY_TIMEOUT: Duration = Duration::from_secs(20);

/// What may be given.
const KINDS: &str =
    "give a folder, or file://, s3://, gs:// or az:// (or, for a farm that need not remember, memory://)";

/// What a URL names of an object store: the store, and the path in it.
pub fn open_objects(url: &str) -> Result<(Arc<dyn ObjectStore>, object_store::path::Path), StoreUrlError> {
    let RenderStore { objects, root, .. } = open(url)?;
    Ok((objects, root))
}

/// Opens the store of a URL (`file:///renders`, `s3://bucket/prefix`, ...) or of a plain folder, which is
/// made if need be. Credentials and endpoints come from the usual environment variables (`AWS_*`,
/// `GOOGLE_*`, `AZURE_*`).
pub fn open(text: &str) -> Result<RenderStore, StoreUrlError> {
    let fail = |reason: String| StoreUrlError { url: text.to_owned(), reason };
    if text.trim().is_empty() {
        return Err(fail(format!("it is empty; {KINDS}")));
    }
    if !text.contains("://") {
        return folder(std::path::Path::new(text)).map_err(fail);
    }
    let url = Url::parse(text).map_err(|e| fail(format!("{e}; {KINDS}")))?;
    let (scheme, _) = ObjectStoreScheme::parse(&url).map_err(|e| fail(format!("{e}; {KINDS}")))?;
    if matches!(scheme, ObjectStoreScheme::Http) {
        return Err(fail(format!("web servers keep no renders; {KINDS}")));
    }
    if matches!(scheme, ObjectStoreScheme::Local) {
        let path = url.to_file_path().map_err(|()| fail(format!("it names no folder; {KINDS}")))?;
        return folder(&path).map_err(fail);
    }
    install_crypto();
    let variables = variables();
    misunderstood(&scheme, &variables).map_err(&fail)?;
    let options =
        DEFAULTS.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().chain(variables);
    let built = build(&scheme, url.as_str(), options.collect());
    let objects = built.map_err(|e| match e.to_string() {
        text if text.contains("Account must be specified") => {
            fail(format!("{text}: set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY"))
        }
        text => fail(format!("{text}; {KINDS}")),
    })?;
    let (_, root) = ObjectStoreScheme::parse(&url).map_err(|e| fail(e.to_string()))?;
    Ok(RenderStore::new(objects, root))
}

/// The variables that may concern a store, their names in lower case.
fn variables() -> Vec<(String, String)> {
    let concerns =
        |name: &str| ["AWS_", "GOOGLE_", "AZURE_", "STORAGE_EMULATOR_"].iter().any(|p| name.starts_with(p));
    let set = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    set.filter(|(name, value)| concerns(name) && !value.is_empty())
        .map(|(name, value)| (name.to_lowercase(), value))
        .collect()
}

/// Fails when the variables mean something that the client would not do, with words that do not tell.
fn misunderstood(scheme: &ObjectStoreScheme, variables: &[(String, String)]) -> Result<(), String> {
    let set = |name: &str| variables.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
    let any = |names: &[&str]| names.iter().find_map(|n| set(n));
    let is_on =
        |name: &str| set(name).is_some_and(|v| ["1", "true", "on", "yes", "y"].contains(&&*v.to_lowercase()));
    let check_endpoint = |endpoint: Option<&str>, permission: &str| match endpoint {
        Some(e) if e.starts_with("http://") && !is_on(&permission.to_lowercase()) => {
            Err(format!("its endpoint {e} is not encrypted: set {permission}=true to use it all the same"))
        }
        Some(e) if !e.contains("://") => Err(format!(
            "its endpoint {e} has no scheme: write https://{e}, or http://{e} and {permission}=true"
        )),
        _ => Ok(()),
    };
    match scheme {
        ObjectStoreScheme::AmazonS3 => {
            let endpoint = any(&["aws_endpoint_url_s3", "aws_endpoint_url", "aws_endpoint"]);
            check_endpoint(endpoint, "AWS_ALLOW_HTTP")?;
            match (set("aws_access_key_id"), set("aws_secret_access_key")) {
                (Some(_), None) => Err("AWS_ACCESS_KEY_ID is set: set AWS_SECRET_ACCESS_KEY too".into()),
                (None, Some(_)) => Err("AWS_SECRET_ACCESS_KEY is set: set AWS_ACCESS_KEY_ID too".into()),
                _ => Ok(()),
            }
        }
        ObjectStoreScheme::GoogleCloudStorage => {
            let keys =
                ["google_application_credentials", "google_service_account", "google_service_account_path"];
            for (name, path) in keys.iter().filter_map(|name| Some((name, set(name)?))) {
                if !std::path::Path::new(path).is_file() {
                    return Err(format!("{} names {path}: there is no such file", name.to_uppercase()));
                }
            }
            match (set("storage_emulator_host"), set("google_base_url")) {
                (Some(host), None) => Err(format!(
                    "STORAGE_EMULATOR_HOST is not read: set GOOGLE_BASE_URL=http://{} and GOOGLE_SKIP_SIGNATURE=true",
                    host.trim_start_matches("http://")
                )),
                _ => Ok(()),
            }
        }
        ObjectStoreScheme::MicrosoftAzure => {
            let endpoint = any(&["azure_storage_endpoint", "azure_endpoint"]);
            if !is_on("azure_storage_use_emulator") {
                check_endpoint(endpoint, "AZURE_ALLOW_HTTP")?;
            }
            match (set("azure_storage_connection_string"), set("azure_storage_account_name")) {
                (Some(_), None) => {
                    Err("AZURE_STORAGE_CONNECTION_STRING is not read: set AZURE_STORAGE_ACCOUNT_NAME and \
                                        AZURE_STORAGE_ACCOUNT_KEY to its AccountName and AccountKey"
                        .into())
                }
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// A client with few retries of its own: those who use it try again, and say so.
fn build(
    scheme: &ObjectStoreScheme,
    url: &str,
    options: Vec<(String, String)>,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    let retry =
        || RetryConfig { max_retries: RETRIES, retry_timeout: RETRY_TIMEOUT, ..RetryConfig::default() };
    macro_rules! build {
        ($builder:ty) => {{
            let builder = <$builder>::new().with_url(url).with_retry(retry());
            // Variables that mean nothing to the client are left alone.
            let known = |(key, value): (String, String)| Some((key.parse().ok()?, value));
            let options = options.into_iter().filter_map(known);
            let builder = options.fold(builder, |builder, (key, value)| builder.with_config(key, value));
            Arc::new(builder.build()?)
        }};
    }
    Ok(match scheme {
        ObjectStoreScheme::AmazonS3 => build!(object_store::aws::AmazonS3Builder),
        ObjectStoreScheme::GoogleCloudStorage => build!(object_store::gcp::GoogleCloudStorageBuilder),
        ObjectStoreScheme::MicrosoftAzure => build!(object_store::azure::MicrosoftAzureBuilder),
        _ => Arc::new(InMemory::new()),
    })
}

fn folder(path: &std::path::Path) -> Result<RenderStore, String> {
    std::fs::create_dir_all(path).map_err(|e| e.to_string())?;
    let objects = LocalFileSystem::new_with_prefix(path).map_err(|e| e.to_string())?.with_fsync(true);
    Ok(RenderStore::in_folder(Arc::new(objects), path.to_owned()))
}

/// The HTTP client asks for the process's cryptography: ring, as for every other connection here.
fn install_crypto() {
    // Somebody may have installed it before: then there is nothing to do.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(scheme: ObjectStoreScheme, set: &[(&str, &str)]) -> String {
        let variables: Vec<_> = set.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        misunderstood(&scheme, &variables).err().unwrap_or_default()
    }

    #[test]
    fn a_plain_endpoint_needs_a_permission() {
        use ObjectStoreScheme::{AmazonS3, MicrosoftAzure};
        for endpoint in ["aws_endpoint", "aws_endpoint_url", "aws_endpoint_url_s3"] {
            let said = refused(AmazonS3, &[(endpoint, "http://127.0.0.1:9000")]);
            assert!(said.contains("AWS_ALLOW_HTTP=true") && said.contains("127.0.0.1:9000"), "{said}");
        }
        assert_eq!(refused(AmazonS3, &[("aws_endpoint", "http://a:1"), ("aws_allow_http", "true")]), "");
        assert_eq!(refused(AmazonS3, &[("aws_endpoint", "https://a:1")]), "");
        assert!(refused(AmazonS3, &[("aws_endpoint", "a:9000")]).contains("https://a:9000"));
        assert!(refused(MicrosoftAzure, &[("azure_endpoint", "http://a")]).contains("AZURE_ALLOW_HTTP"));
        let emulator = [("azure_endpoint", "http://a"), ("azure_storage_use_emulator", "true")];
        assert_eq!(refused(MicrosoftAzure, &emulator), "");
    }

    #[test]
    fn variables_that_would_be_ignored_are_named() {
        use ObjectStoreScheme::{AmazonS3, GoogleCloudStorage, MicrosoftAzure};
        assert!(refused(AmazonS3, &[("aws_access_key_id", "a")]).contains("AWS_SECRET_ACCESS_KEY too"));
        let said = refused(MicrosoftAzure, &[("azure_storage_connection_string", "AccountName=a")]);
        assert!(said.contains("AZURE_STORAGE_ACCOUNT_KEY"), "{said}");
        let said = refused(GoogleCloudStorage, &[("google_application_credentials", "/no/such/key.json")]);
        assert!(said.contains("GOOGLE_APPLICATION_CREDENTIALS names /no/such/key.json"), "{said}");
        let said = refused(GoogleCloudStorage, &[("storage_emulator_host", "localhost:4443")]);
        assert!(said.contains("GOOGLE_BASE_URL=http://localhost:4443"), "{said}");
        assert_eq!(refused(GoogleCloudStorage, &[]), "");
    }
}
