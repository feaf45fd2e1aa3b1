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

/// How long one request may take.
const REQUEST: &str = "180 seconds";

/// Retries of the client itself, and for how long.
const RETRIES: usize = 3;
const RETRY_TIMEOUT: Duration = Duration::from_secs(20);

/// What may be given.
const KINDS: &str = "give a folder, or file://, s3://, gs://, az:// or memory://";

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
    let variables = std::env::vars()
        .filter(|(name, _)| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|prefix| name.starts_with(prefix)));
    let variables = variables.map(|(name, value)| (name.to_lowercase(), value));
    // A part of 8 MB on a slow line; a variable of one's own wins.
    let options = std::iter::once(("timeout".to_owned(), REQUEST.to_owned())).chain(variables);
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
