//! `gigasmith view`: a page to look at what was made.

use std::net::SocketAddr;
use std::path::PathBuf;

use axum::serve;
use clap::Args;
use tokio::net::TcpListener;

use super::failure::Failure;
use super::{interrupted, print, tell};
use crate::raster::Scratch;
use crate::view::{self, Opened};
use crate::web;

/// Arguments of `gigasmith view`.
#[derive(Debug, Args)]
pub(super) struct ViewArgs {
    /// The picture: a .dzi, .tif, .png, .jpg or .webp file, or a .dzi, .tif or .png in a store, such as
    /// s3://bucket/harbour.dzi. (A coordinator
    /// shows its renders, finished or not, on its own address.)
    #[arg(value_name = "FILE|URL")]
    picture: String,
    /// Address and port to listen on; port 0 takes a free one.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Folder that a picture without a pyramid is read into, on a disk with 4 bytes for each pixel: the system's unless given.
    #[arg(long, value_name = "FOLDER")]
    scratch: Option<PathBuf>,
}

/// Shows a picture until a signal.
pub(super) async fn run(args: ViewArgs) -> Result<(), Failure> {
    if args.picture.starts_with("http://") || args.picture.starts_with("https://") {
        return Err(Failure::usage(format!(
            "{} is a web address: a coordinator shows its renders there, in a browser; `gigasmith view` takes a file, \
             or one in a store (s3://, gs://, az://)",
            args.picture
        )));
    }
    if !args.listen.ip().to_canonical().is_loopback() {
        return Err(Failure::usage(format!(
            "listening on {} would show the picture to everyone who reaches this machine: listen on 127.0.0.1",
            args.listen
        )));
    }
    let scratch = args.scratch.map_or_else(Scratch::default, Scratch::new);
    let opened = tokio::select! {
        opened = view::open(&args.picture, &scratch) => opened,
        signal = interrupted() => {
            signal.map_err(|e| Failure::render(format!("cannot listen for signals: {e}")))?;
            return Err(Failure::Interrupted);
        }
    };
    let Opened { picture, bytes } = opened.map_err(|e| Failure::Input(e.to_string()))?;
    let listener = TcpListener::bind(args.listen).await;
    let listener = listener
        .map_err(|e| Failure::farm(format!("cannot listen on {}: {e}; choose another port", args.listen)))?;
    let address =
        listener.local_addr().map_err(|e| Failure::farm(format!("the port has no address: {e}")))?;
    let described = picture.describe();
    tell(&format!("{} ({}x{}, {})", args.picture, described.width, described.height, described.format));
    print(&format!("showing it at http://{address}/ (Ctrl-C ends)"))?;
    tokio::select! {
        ended = serve(listener, web::picture_routes(picture, bytes)) => {
            ended.map_err(|e| Failure::farm(format!("the server failed: {e}")))
        }
        signal = interrupted() => signal.map_err(|e| Failure::farm(format!("cannot listen for signals: {e}"))),
    }
}
