//! Whom to trust: the public authorities and those that the machine knows besides (a company's), or, as with the hub's
//! own clients, only those in the bundles that variables name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_native_certs::{load_certs_from_paths, load_native_certs};

use super::error::HubError;

/// TLS for the hub. `bundles`: files and folders of PEM certificates, with the variables that name them.
pub(super) fn config(bundles: &[(&'static str, PathBuf)]) -> Result<ClientConfig, HubError> {
    let mut roots = RootCertStore::empty();
    if bundles.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        let machine = load_native_certs();
        for error in &machine.errors {
            tracing::debug!(%error, "a certificate of this machine cannot be read");
        }
        roots.add_parsable_certificates(machine.certs);
    }
    for (variable, path) in bundles {
        add(&mut roots, variable, path)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider knows TLS 1.2 and 1.3");
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn add(roots: &mut RootCertStore, variable: &str, path: &Path) -> Result<(), HubError> {
    let unusable = |reason: String| {
        let path = path.display();
        HubError::setting(
            variable,
            format!("{path} {reason}; name a file with the certificates of authorities (PEM), or unset it"),
        )
    };
    let metadata = std::fs::metadata(path).map_err(|e| unusable(format!("cannot be read: {e}")))?;
    let (file, folder) = if metadata.is_dir() { (None, Some(path)) } else { (Some(path), None) };
    let found = load_certs_from_paths(file, folder);
    if let Some(error) = found.errors.first().filter(|_| found.certs.is_empty() || file.is_some()) {
        return Err(unusable(format!("cannot be read: {error}")));
    }
    let (added, _) = roots.add_parsable_certificates(found.certs);
    match added {
        0 => Err(unusable("has no certificate".into())),
        _ => Ok(()),
    }
}
