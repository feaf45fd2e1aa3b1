//! The store's promises, in memory and in a folder.

use object_store::memory::InMemory;
use tokio_stream::StreamExt;

use super::records::StoredState;
use super::*;
use crate::output::testing::{Memory, embedded};
use crate::output::{Format, Kind, Quality, encode_latents, write_picture};
use crate::request::RenderRequest;

fn stores() -> (tempfile::TempDir, Vec<RenderStore>) {
    let folder = tempfile::tempdir().unwrap();
    let local = open(folder.path().join("new/store").to_str().unwrap()).unwrap();
    let memory = RenderStore::new(Arc::new(InMemory::new()), Path::from("a/prefix"));
    (folder, vec![local, memory])
}

fn record(id: &str, order: u64) -> RenderRecord {
    let request = RenderRequest { prompt: "a fox".into(), seed: 7, ..RenderRequest::default() };
    let (picture, plan, nonce) = (None, None, String::new());
    RenderRecord { version: VERSION, id: id.into(), nonce, order, request, priority: 3, picture, plan }
}

#[tokio::test]
async fn renders_come_back_in_the_order_they_were_submitted() {
    let (_folder, stores) = stores();
    for store in stores {
        store.create_render(&record("b", 1), &RequestInputs::default()).await.unwrap();
        store.create_render(&record("a", 2), &RequestInputs::default()).await.unwrap();
        // The same again is an answer that was lost.
        store.create_render(&record("b", 1), &RequestInputs::default()).await.unwrap();
        let twice = store.create_render(&record("b", 3), &RequestInputs::default()).await.unwrap_err();
        assert!(matches!(twice, StoreError::Taken(id) if id == "b"));
        let state = StateRecord { state: StoredState::Paused, ..StateRecord::queued(5) };
        let claim = store.claim("a", &Owner { incarnation: "a".into(), name: "a".into() }).await.unwrap();
        store.set_state("a", &claim, &state).await.unwrap();
        let all = store.index().await.unwrap();
        let ids: Vec<&str> = all.iter().map(|s| s.id.as_str()).collect();
        assert_eq!(ids, ["b", "a"]);
        assert_eq!((&all[0].state, &all[1].state), (&StateRecord::queued(3), &state));
        assert_eq!(all[1].summary, Summary::of(&record("a", 2), None));
        assert_eq!(store.read("a").await.unwrap().unwrap().record, record("a", 2));
    }
}

#[tokio::test]
async fn inputs_stages_and_results_come_back_and_damage_is_named() {
    let (_folder, stores) = stores();
    for store in stores {
        let size = ImageSize { width: 2, height: 1 };
        let inputs = RequestInputs {
            picture: Some(Picture::new(size, vec![1, 2, 3, 4, 5, 6])),
            plan: Some("{}".into()),
        };
        let hash = hash_of(&[1, 2, 3, 4, 5, 6]);
        let picture = Some(InputPicture { size, hash: hash.clone() });
        let mut record = RenderRecord { picture, plan: Some(hash_of(b"{}")), ..record("r1", 1) };
        store.create_render(&record, &inputs).await.unwrap();
        assert_eq!(store.inputs(&record, true).await.unwrap(), inputs);
        record.picture = Some(InputPicture { size: ImageSize { width: 3, height: 1 }, hash: hash.clone() });
        assert!(store.inputs(&record, true).await.unwrap_err().to_string().contains("another size"));
        store.write(&store.input_path("r1", &hash), vec![0; 6]).await.unwrap();
        assert!(store.inputs(&record, true).await.unwrap_err().to_string().contains(&hash));

        let spec = crate::spec::tests::spec();
        let latent = Array::new([1, 1, 2], vec![0.5, -1.0]).unwrap();
        assert!(store.stage("r1", 0, [1, 1, 2], &spec).await.unwrap().is_none());
        let bytes = encode_latents(&latent, &Settings::new(spec.clone())).unwrap();
        store.write(&store.stage_path("r1", 0), bytes).await.unwrap();
        assert_eq!(store.stage("r1", 0, [1, 1, 2], &spec).await.unwrap(), Some(latent));
        let error = async |stage, shape, spec: &RenderSpec| {
            store.stage("r1", stage, shape, spec).await.unwrap_err().to_string()
        };
        assert!(error(0, [1, 2, 2], &spec).await.contains("not [1, 2, 2]"));
        assert!(
            error(0, [1, 1, 2], &RenderSpec { seed: 1, ..spec.clone() }).await.contains("another render")
        );
        store.write(&store.stage_path("r1", 1), vec![1, 2, 3]).await.unwrap();
        assert!(error(1, [1, 1, 2], &spec).await.contains("stages/1.safetensors"));

        assert!(store.result_place("r1", &StateRecord::queued(0), 2).await.unwrap().is_none());
        let owner = Owner { incarnation: "a".into(), name: "a".into() };
        let claim = store.claim("r1", &owner).await.unwrap();
        // More than fits one part as PNG.
        let mut place = None;
        for (kind, width) in [(Kind::Png, 3000), (Kind::Dzi, 700), (Kind::Tif, 700)] {
            let picture = Arc::new(Memory::noise(width, 2000));
            let format = Format::new(kind, Some(Quality::Lossless)).unwrap();
            let outputs = Outputs::new(picture.clone(), embedded(), (format, &Scratch::default()));
            let result = store.put_result("r1", &claim, &outputs, Arc::new(|_, _| true)).await.unwrap();
            let done = StateRecord { result: Some(result), ..StateRecord::queued(0) };
            place = store.result_place("r1", &done, 2).await.unwrap();
            let place = place.as_ref().unwrap();
            assert_eq!(place.kind, kind);
            let mut fetched = store.result(place, Part::Picture).await.unwrap().unwrap();
            let mut files: Vec<(String, Vec<u8>)> = Vec::new();
            while let Some(piece) = fetched.pieces.next().await {
                let piece = piece.unwrap();
                if files.last().is_none_or(|(file, _)| *file != piece.file) {
                    files.push((piece.file, Vec::new()));
                }
                files.last_mut().unwrap().1.extend_from_slice(&piece.bytes);
            }
            assert_eq!(
                (fetched.kind, fetched.total),
                (Some(kind), files.iter().map(|f| f.1.len() as u64).sum())
            );
            let local = tempfile::tempdir().unwrap();
            let path = local.path().join("result").with_extension(kind.extension());
            write_picture(&path, &*picture, &embedded(), format, &mut |_, _| Ok(())).unwrap();
            for (file, bytes) in &files {
                let name =
                    if file.is_empty() { path.clone() } else { local.path().join(format!("result{file}")) };
                assert!(std::fs::read(name).unwrap() == *bytes, "{kind:?} {file}");
            }
            assert_eq!(files.last().unwrap().0, if kind == Kind::Dzi { ".dzi" } else { "" });
            assert_eq!(files.len() > 1, kind == Kind::Dzi);
        }
        assert_eq!(store.result(&place.unwrap(), Part::Plan).await.unwrap().unwrap().total, 0);
    }
}

#[tokio::test]
async fn a_damaged_state_is_shown_and_loses_nothing() {
    let (_folder, stores) = stores();
    for store in stores {
        for id in ["a", "b"] {
            store.create_render(&record(id, 1), &RequestInputs::default()).await.unwrap();
        }
        store.write(&store.path("a", "state.json"), Vec::new()).await.unwrap();
        store.write(&store.path("b", "spec.json"), b"{".to_vec()).await.unwrap();
        for stored in [store.read("a").await.unwrap().unwrap(), store.read("b").await.unwrap().unwrap()] {
            assert_eq!(stored.state.state, StoredState::Failed);
            assert!(stored.state.reason.contains("damaged"), "{}", stored.state.reason);
        }
        assert_eq!(store.index().await.unwrap().len(), 2);
    }
}

#[tokio::test]
async fn the_first_spec_stands() {
    let (_folder, stores) = stores();
    for store in stores {
        let first = crate::spec::tests::spec();
        let second = RenderSpec { seed: 1, ..first.clone() };
        assert_eq!(store.settle("r1", &first).await.unwrap(), first);
        assert_eq!(store.settle("r1", &second).await.unwrap(), first);
    }
}

#[tokio::test]
async fn a_format_of_the_future_is_left_alone() {
    let (_folder, stores) = stores();
    for store in stores {
        store
            .create_render(&RenderRecord { version: 3, ..record("new", 1) }, &RequestInputs::default())
            .await
            .unwrap();
        store.create_render(&record("old", 2), &RequestInputs::default()).await.unwrap();
        assert!(store.read("new").await.unwrap_err().to_string().contains("version 3"));
        assert_eq!(store.index().await.unwrap().len(), 1);
    }
}

/// A `render.json` as version 1 was first written: it must be read for ever.
#[test]
fn version_1_is_read() {
    let json = r#"{"version":1,"id":"r1","order":3,"request":{"prompt":"a fox","seed":7,"model":"pocket",
        "steps":30,"slider":[12,18],"guidance_scale":7.5,"plan":"balanced","vae":"auto","dtype":"f32"},
        "priority":2,"picture":{"size":{"width":2,"height":1},"hash":"ab"},"plan":null}"#;
    let record: RenderRecord = serde_json::from_str(json).unwrap();
    assert_eq!((record.order, record.request.steps, record.picture.unwrap().size.width), (3, Some(30), 2));
    let state = r#"{"state":"paused","priority":-1,"reason":"x","warnings":[]}"#;
    assert_eq!(serde_json::from_str::<StateRecord>(state).unwrap().state, StoredState::Paused);
}

#[test]
fn urls_without_a_store_are_explained() {
    for url in ["ftp://x/y", "gopher://x"] {
        let error = open(url).unwrap_err().to_string();
        assert!(error.contains(url) && error.contains("s3://"), "{error}");
    }
    assert!(open("memory:///").is_ok());
}

type Streamed<T> = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = T> + Send>>;

/// A store that knows which uploads in parts are open.
#[derive(Debug, Clone, Default)]
struct Counting {
    inner: Arc<InMemory>,
    open: Arc<std::sync::atomic::AtomicUsize>,
}

impl std::fmt::Display for Counting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a store that counts")
    }
}

#[derive(Debug)]
struct Open {
    upload: Box<dyn object_store::MultipartUpload>,
    open: Arc<std::sync::atomic::AtomicUsize>,
}

#[tonic::async_trait]
impl object_store::MultipartUpload for Open {
    /// The last part never comes.
    fn put_part(&mut self, data: PutPayload) -> object_store::UploadPart {
        match data.content_length() < SMALL {
            true => Box::pin(std::future::pending()),
            false => self.upload.put_part(data),
        }
    }
    async fn complete(&mut self) -> object_store::Result<object_store::PutResult> {
        self.open.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
        self.upload.complete().await
    }
    async fn abort(&mut self) -> object_store::Result<()> {
        self.open.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
        self.upload.abort().await
    }
}

#[tonic::async_trait]
impl ObjectStore for Counting {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<object_store::PutResult> {
        self.inner.put_opts(path, payload, options).await
    }
    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: object_store::PutMultipartOptions,
    ) -> object_store::Result<Box<dyn object_store::MultipartUpload>> {
        self.open.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let upload = self.inner.put_multipart_opts(path, options).await?;
        Ok(Box::new(Open { upload, open: self.open.clone() }))
    }
    async fn get_opts(
        &self,
        path: &Path,
        options: object_store::GetOptions,
    ) -> object_store::Result<object_store::GetResult> {
        self.inner.get_opts(path, options).await
    }
    fn delete_stream(
        &self,
        paths: Streamed<object_store::Result<Path>>,
    ) -> Streamed<object_store::Result<Path>> {
        self.inner.delete_stream(paths)
    }
    fn list(&self, prefix: Option<&Path>) -> Streamed<object_store::Result<object_store::ObjectMeta>> {
        self.inner.list(prefix)
    }
    async fn list_with_delimiter(
        &self,
        prefix: Option<&Path>,
    ) -> object_store::Result<object_store::ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }
    async fn copy_opts(
        &self,
        from: &Path,
        to: &Path,
        options: object_store::CopyOptions,
    ) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[tokio::test]
async fn an_upload_that_is_given_up_leaves_no_parts() {
    let counting = Counting::default();
    let store = RenderStore::new(Arc::new(counting.clone()), Path::default());
    let path = Path::from("large");
    // Cancelled, as a render is that somebody gives up.
    let writing = store.write(&path, vec![7; 2 * SMALL + 1]);
    assert!(tokio::time::timeout(std::time::Duration::from_millis(50), writing).await.is_err());
    while counting.open.load(std::sync::atomic::Ordering::SeqCst) > 0 {
        tokio::task::yield_now().await;
    }
    assert!(store.get(&path).await.unwrap().is_none());
    store.write(&path, vec![7; 2 * SMALL]).await.unwrap();
    assert_eq!(counting.open.load(std::sync::atomic::Ordering::SeqCst), 0);
    assert_eq!(store.get(&path).await.unwrap().unwrap().len(), 2 * SMALL);
}
