//! `gigasmith certs`: certificates for a farm of one's own.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::failure::Failure;
use super::print;
use crate::net::certs;

/// Arguments of `gigasmith certs`.
#[derive(Debug, Args)]
pub(super) struct CertsArgs {
    #[command(subcommand)]
    action: CertsAction,
    /// The folder with the authority and the certificates.
    #[arg(long, value_name = "DIR", default_value = "certs", global = true)]
    certs: PathBuf,
}

#[derive(Debug, Subcommand)]
enum CertsAction {
    /// Make an authority: ca.pem for everyone, ca.key to be kept safe.
    Init,
    /// Sign a certificate with it: NAME.pem and NAME.key, for a coordinator or a worker.
    Issue {
        /// What to call it.
        name: String,
        /// Host names and addresses under which others reach it; this machine's own unless given.
        #[arg(long, value_name = "HOST", value_delimiter = ',')]
        host: Vec<String>,
    },
}

pub(super) fn run(args: &CertsArgs) -> Result<(), Failure> {
    let files = match &args.action {
        CertsAction::Init => certs::init(&args.certs),
        CertsAction::Issue { name, .. } if !certs::is_name(name) => {
            return Err(Failure::usage(format!(
                "`{name}` is no name for a certificate: use letters, digits, `-`, `_` and `.`, and not `ca`"
            )));
        }
        CertsAction::Issue { host, .. } if host.iter().any(|h| !certs::is_host(h)) => {
            let wrong = host.iter().find(|h| !certs::is_host(h)).map_or("", String::as_str);
            return Err(Failure::usage(format!(
                "`{wrong}` is neither a host name nor an address: give farm.example or 10.0.0.7, without scheme or port"
            )));
        }
        CertsAction::Issue { name, host } => {
            let hosts = if host.is_empty() { certs::default_hosts() } else { host.clone() };
            certs::issue(&args.certs, name, &hosts)
        }
    };
    let [certificate, key] = files.map_err(Failure::output)?;
    print(&format!("wrote {} and {}", certificate.display(), key.display()))
}
