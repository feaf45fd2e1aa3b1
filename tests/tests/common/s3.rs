//! An S3 server on a port of this machine, for as long as a test wants it.
//!
//! s3s speaks the protocol and s3s-fs keeps objects in a folder; [`Strict`] adds what S3 promises and s3s-fs
//! does not: one writer at a time, so that an object is created once, and no buckets but those there are.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::auth::SimpleAuth;
use s3s::dto::*;
use s3s::service::S3ServiceBuilder;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::sync::RwLock;
use tokio::task::{JoinHandle, JoinSet};

pub(crate) const KEY: &str = "test-key";
pub(crate) const SECRET: &str = "test-secret";

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    expired: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Server {
    /// Serves the buckets of a folder: its subfolders.
    pub(crate) async fn start(root: &Path) -> Self {
        let expired = Arc::new(AtomicBool::new(false));
        let mut builder = S3ServiceBuilder::new(Strict::new(root, expired.clone()));
        builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let service = builder.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it has an address");
        let task = tokio::spawn(async move {
            // Dropped with the task, and then every connection closes.
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                connections.spawn(async move {
                    let http = auto::Builder::new(TokioExecutor::new());
                    // How a connection ends is its client's business.
                    let _ = http.serve_connection(TokioIo::new(socket), service).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, expired, task }
    }

    /// From now on every request's credentials have expired, or are good again.
    pub(crate) fn expire(&self, expired: bool) {
        self.expired.store(expired, Ordering::SeqCst);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Strict {
    root: PathBuf,
    files: FileSystem,
    expired: Arc<AtomicBool>,
    lock: RwLock<()>,
}

impl Strict {
    fn new(root: &Path, expired: Arc<AtomicBool>) -> Self {
        let files = FileSystem::new(root).expect("the folder is there");
        Self { root: root.to_owned(), files, expired, lock: RwLock::default() }
    }

    /// s3s-fs makes a bucket that is written to, and takes a folder for an object.
    fn check(&self, bucket: &str, key: Option<&str>) -> S3Result<()> {
        if self.expired.load(Ordering::SeqCst) {
            return Err(s3_error!(ExpiredToken, "The provided token has expired."));
        }
        let bucket = self.root.join(bucket);
        if !bucket.is_dir() {
            return Err(s3_error!(NoSuchBucket));
        }
        if key.is_some_and(|key| bucket.join(key).is_dir()) {
            return Err(s3_error!(NoSuchKey));
        }
        Ok(())
    }
}

macro_rules! forward {
    ($($lock:ident $name:ident($input:ident) -> $output:ident $(, $key:ident)?;)*) => {
        #[async_trait::async_trait]
        impl S3 for Strict {$(
            async fn $name(&self, req: S3Request<$input>) -> S3Result<S3Response<$output>> {
                let _guard = self.lock.$lock().await;
                let key: Option<&str> = None$(.or(Some(&*req.input.$key)))?;
                self.check(&req.input.bucket, key)?;
                self.files.$name(req).await
            }
        )*}
    };
}

forward! {
    read get_object(GetObjectInput) -> GetObjectOutput, key;
    read head_object(HeadObjectInput) -> HeadObjectOutput, key;
    read list_objects_v2(ListObjectsV2Input) -> ListObjectsV2Output;
    write put_object(PutObjectInput) -> PutObjectOutput;
    write delete_object(DeleteObjectInput) -> DeleteObjectOutput;
    write delete_objects(DeleteObjectsInput) -> DeleteObjectsOutput;
    read create_multipart_upload(CreateMultipartUploadInput) -> CreateMultipartUploadOutput;
    read upload_part(UploadPartInput) -> UploadPartOutput;
    write complete_multipart_upload(CompleteMultipartUploadInput) -> CompleteMultipartUploadOutput;
    write abort_multipart_upload(AbortMultipartUploadInput) -> AbortMultipartUploadOutput;
}
