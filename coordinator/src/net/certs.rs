//! Certificates for a farm of one's own: an authority, and certificates that it signs.
//!
//! Keys are written readable by their owner only. Nothing that exists is ever overwritten.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// A certificate that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// A file is there already, or cannot be read or written.
    #[error("cannot use {}: {reason}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The names make no certificate.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
}

/// The files of an authority.
const CA: (&str, &str) = ("ca.pem", "ca.key");

fn distinguished(params: &mut CertificateParams, name: &str) {
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    // Clocks of farms differ and their certificates are private: valid from long ago until long hence.
    params.not_before = date_time_ymd(2024, 1, 1);
    params.not_after = date_time_ymd(2099, 1, 1);
}

/// Makes an authority in `folder`: `ca.pem` for everyone, `ca.key` to be kept.
pub fn init(folder: &Path) -> Result<[PathBuf; 2], CertsError> {
    let mut params = CertificateParams::new(Vec::new())?;
    distinguished(&mut params, "gigasmith farm");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    write_pair(folder, CA, &certificate.pem(), &key.serialize_pem())
}

/// Signs a certificate for a coordinator or a worker with the authority in `folder`: `NAME.pem` and
/// `NAME.key`, valid for the given host names and addresses, for both ends of a connection.
pub fn issue(folder: &Path, name: &str, hosts: &[String]) -> Result<[PathBuf; 2], CertsError> {
    let authority = authority(folder)?;
    let mut params = CertificateParams::new(hosts.to_vec())?;
    distinguished(&mut params, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &authority)?;
    let files = (format!("{name}.pem"), format!("{name}.key"));
    write_pair(folder, (&files.0, &files.1), &certificate.pem(), &key.serialize_pem())
}

/// Whether a name can be that of a file and of a certificate.
pub fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name != "ca" && !name.starts_with('.') && name.chars().all(plain)
}

/// Whether a text is a host name or an address, and nothing more.
pub fn is_host(host: &str) -> bool {
    let label = |l: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '*');
        !l.is_empty() && l.len() < 64 && l.chars().all(plain)
    };
    host.parse::<IpAddr>().is_ok() || (host.len() < 254 && host.split('.').all(label))
}

/// Hosts that a certificate holds for when none are given: this machine, as itself and others call it.
pub fn default_hosts() -> Vec<String> {
    let local = [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
    let name = gethostname::gethostname().to_string_lossy().into_owned();
    let names = ["localhost".to_owned(), name].into_iter().filter(|n| is_host(n));
    names.chain(local.map(|ip| ip.to_string())).collect()
}

fn authority(folder: &Path) -> Result<Issuer<'static, KeyPair>, CertsError> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read_to_string(&path).map_err(|e| CertsError::File {
            reason: format!("{e}; make an authority with `gigasmith certs init`"),
            path,
        })
    };
    let key = KeyPair::from_pem(&read(CA.1)?)?;
    // The authority's certificate is the one that `init` makes: name and uses are known.
    read(CA.0)?;
    let mut params = CertificateParams::new(Vec::new())?;
    distinguished(&mut params, "gigasmith farm");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(Issuer::new(params, key))
}

fn write_pair(
    folder: &Path,
    names: (&str, &str),
    certificate: &str,
    key: &str,
) -> Result<[PathBuf; 2], CertsError> {
    let paths = [folder.join(names.0), folder.join(names.1)];
    let fail = |path: &Path, reason: String| CertsError::File { path: path.to_owned(), reason };
    if let Some(path) = paths.iter().find(|p| p.exists()) {
        return Err(fail(path, "it exists already, and is not overwritten".to_owned()));
    }
    std::fs::create_dir_all(folder).map_err(|e| fail(folder, e.to_string()))?;
    for (path, text, mode) in [(&paths[0], certificate, 0o644), (&paths[1], key, 0o600)] {
        write_new(path, text, mode).map_err(|e| fail(path, e.to_string()))?;
    }
    Ok(paths)
}

fn write_new(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    use std::io::Write;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_overwritten_and_keys_are_private() {
        let folder = tempfile::tempdir().unwrap();
        assert!(issue(folder.path(), "w", &[]).unwrap_err().to_string().contains("certs init"));
        let [_, key] = init(folder.path()).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert!(init(folder.path()).unwrap_err().to_string().contains("exists already"));
        let [certificate, _] = issue(folder.path(), "farm", &default_hosts()).unwrap();
        assert!(std::fs::read_to_string(certificate).unwrap().contains("BEGIN CERTIFICATE"));
        assert!(issue(folder.path(), "farm", &[]).is_err());
        assert!(["farm.example", "10.0.0.7", "::1", "gpu-1"].iter().all(|h| is_host(h)));
        assert!(["", "https://x:7464", "a b", "[::1]", "x:1", "a..b"].iter().all(|h| !is_host(h)));
        assert!(is_name("gpu-1.lan") && !is_name("ca") && !is_name("../x") && !is_name(""));
        drop(key);
    }
}
