//! The store's promises, in memory and in a folder.

use object_store::memory::InMemory;

use super::records::StoredState;
use super::*;
use crate::request::RenderRequest;

fn stores() -> (tempfile::TempDir, Vec<RenderStore>) {
    let folder = tempfile::tempdir().unwrap();
    let local = open(folder.path().join("new/store").to_str().unwrap()).unwrap();
    let memory = RenderStore::new(Arc::new(InMemory::new()), Path::from("a/prefix"));
    (folder, vec![local, memory])
}

fn record(id: &str, order: u64) -> RenderRecord {
    let request = RenderRequest { prompt: "a fox".into(), seed: 7, ..RenderRequest::default() };
    RenderRecord { version: VERSION, id: id.into(), order, request, picture: None, has_plan: false }
}

#[tokio::test]
async fn renders_come_back_in_the_order_they_were_submitted() {
    let (_folder, stores) = stores();
    for store in stores {
        store.create(&record("b", 1), &RequestInputs::default()).await.unwrap();
        store.create(&record("a", 2), &RequestInputs::default()).await.unwrap();
        let twice = store.create(&record("b", 3), &RequestInputs::default()).await.unwrap_err();
        assert!(matches!(twice, StoreError::Taken(id) if id == "b"));
        let state = StateRecord { state: StoredState::Paused, priority: 5, ..StateRecord::default() };
        store.set_state("a", &state).await.unwrap();
        let all = store.list().await.unwrap();
        let ids: Vec<&str> = all.iter().map(|s| s.record.id.as_str()).collect();
        assert_eq!(ids, ["b", "a"]);
        assert_eq!((&all[0].state, &all[1].state), (&StateRecord::default(), &state));
        assert_eq!(all[1].record, record("a", 2));
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
        let mut record = RenderRecord { picture: Some(size), has_plan: true, ..record("r1", 1) };
        store.create(&record, &inputs).await.unwrap();
        assert_eq!(store.inputs(&record).await.unwrap(), inputs);
        record.picture = Some(ImageSize { width: 3, height: 1 });
        assert!(store.inputs(&record).await.unwrap_err().to_string().contains("picture.rgb"));

        let spec = crate::spec::tests::spec();
        let latent = Array::new([1, 1, 2], vec![0.5, -1.0]).unwrap();
        assert!(store.stage("r1", 0).await.unwrap().is_none());
        store.put_stage("r1", 0, &latent, &spec).await.unwrap();
        assert_eq!(store.stage("r1", 0).await.unwrap(), Some(latent));
        store.put(&store.stage_path("r1", 1), vec![1, 2, 3], PutMode::Overwrite).await.unwrap();
        assert!(store.stage("r1", 1).await.unwrap_err().to_string().contains("stages/1.safetensors"));

        assert!(store.result("r1").await.unwrap().is_none());
        store.put_result("r1", vec![9], vec![8]).await.unwrap();
        assert_eq!(store.result("r1").await.unwrap(), Some(vec![9]));
        assert_eq!(store.result_plan("r1").await.unwrap(), Some(vec![8]));
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
            .create(&RenderRecord { version: 2, ..record("new", 1) }, &RequestInputs::default())
            .await
            .unwrap();
        store.create(&record("old", 2), &RequestInputs::default()).await.unwrap();
        assert!(store.read("new").await.unwrap_err().to_string().contains("version 2"));
        assert_eq!(store.list().await.unwrap().len(), 1);
    }
}

/// A `render.json` as version 1 was first written: it must be read for ever.
#[test]
fn version_1_is_read() {
    let json = r#"{"version":1,"id":"r1","order":3,"request":{"prompt":"a fox","seed":7,"model":"pocket",
        "steps":30,"slider":[12,18],"guidance_scale":7.5,"plan":"balanced","vae":"auto","dtype":"f32"},
        "picture":{"width":2,"height":1},"has_plan":false}"#;
    let record: RenderRecord = serde_json::from_str(json).unwrap();
    assert_eq!((record.order, record.request.steps, record.picture.unwrap().width), (3, Some(30), 2));
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
