//! Nothing that a server says leaves the cache folder, and what it says is shown escaped.

use std::io::{Read, Write};
use std::net::TcpListener;

use crate::stand_in::{COMMIT, Habits, Hub, repository};
use crate::{check, error, listing, open, options, root};

#[test]
fn tags_cannot_leave_the_cache() {
    for tag in ["../../../../evil-", "/tmp/evil-", "..\\..\\evil-", "nul.", "a b-"] {
        let hub = Hub::start();
        *hub.habits() = Habits { tag: Some(tag), ..Habits::default() };
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("deep/in/here/hub");
        open("farm/tiny", options(&cache, &hub.address)).unwrap();
        check(&cache, hub.files());
        let outside: Vec<_> = listing(folder.path())
            .into_keys()
            .filter(|p| !p.starts_with(&cache) && !cache.starts_with(p))
            .collect();
        assert_eq!(outside, Vec::<std::path::PathBuf>::new());
        let names = listing(&root(&cache).join("blobs"));
        assert!(names.into_keys().all(|p| p.file_name().unwrap().len() == 64), "{tag}");
    }
}

#[test]
fn commits_that_are_none_are_refused() {
    let hub = Hub::start();
    let cache = tempfile::tempdir().unwrap();
    for commit in ["../../evil", "main", "", "\u{1b}[31m"] {
        hub.habits().commit = commit.into();
        let message = error("farm/tiny", options(cache.path(), &hub.address)).to_string();
        assert!(message.contains("40 hexadecimal digits") && !message.contains('\u{1b}'), "{message:?}");
    }
    assert!(listing(cache.path()).is_empty());
}

#[test]
fn an_index_cannot_name_files_elsewhere() {
    let mut files = repository();
    let weights = files.remove("unet/diffusion_pytorch_model.safetensors").unwrap();
    files.insert("unet/part.safetensors".into(), weights);
    for bad in ["../model_index.json", "/etc/passwd", "gone.safetensors"] {
        let index = serde_json::json!({"weight_map": {"conv_in.weight": bad}}).to_string();
        files.insert("unet/diffusion_pytorch_model.safetensors.index.json".into(), index.into_bytes());
        let hub = Hub::with(files.clone());
        let cache = tempfile::tempdir().unwrap();
        let message = error("farm/tiny", options(cache.path(), &hub.address)).to_string();
        assert!(message.contains("leaves the folder") || message.contains("does not have"), "{message}");
    }
}

/// Answers every request with the same.
fn says(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address
}

#[test]
fn redirects_end_somewhere_and_on_the_web() {
    let cache = tempfile::tempdir().unwrap();
    let table = [
        ("HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n", "more than 10 redirects"),
        (
            "HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
            "which is no web address",
        ),
        ("HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "does not say where to"),
        ("nothing of http\r\n\r\n", "cannot be reached"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"sha\":", "cannot be reached"),
    ];
    for (answer, said) in table {
        let message = error("farm/tiny", options(cache.path(), &says(answer))).to_string();
        assert!(message.contains(said), "{said}: {message}");
    }
    assert!(listing(cache.path()).is_empty() && COMMIT.len() == 40);
}
