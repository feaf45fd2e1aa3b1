//! The variables of the hub's own clients mean here what they mean there.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

use gigasmith_worker::model::HubOptions;

use crate::stand_in::Hub;
use crate::{check, error, open, options};

fn from(pairs: &[(&str, &str)]) -> HubOptions {
    let map: BTreeMap<String, String> = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    HubOptions::from_lookup(move |key| map.get(key).cloned())
}

#[test]
fn places() {
    let plain = from(&[("HOME", "/home/a")]);
    assert_eq!(plain.cache, Path::new("/home/a/.cache/huggingface/hub"));
    assert_eq!(plain.endpoint, "https://huggingface.co");
    assert!(!plain.offline && plain.token.is_none() && plain.progress && plain.links);
    let cache = |pairs: &[(&str, &str)]| {
        let home = [("HOME", "/home/a"), ("DATA", "/data"), ("USER_1", "u")];
        from(&[&home, pairs].concat()).cache.display().to_string()
    };
    for (pairs, expected) in [
        (&[("XDG_CACHE_HOME", "/x")][..], "/x/huggingface/hub"),
        (&[("XDG_CACHE_HOME", "~/x")], "/home/a/x/huggingface/hub"),
        (&[("HF_HOME", "~/hf")], "/home/a/hf/hub"),
        (&[("HF_HOME", "~")], "/home/a/hub"),
        (&[("HF_HOME", "$DATA/${USER_1}/hf")], "/data/u/hf/hub"),
        (&[("HF_HOME", "$NOBODY/${NOTHING}/$")], "$NOBODY/${NOTHING}/$/hub"),
        (&[("HF_HOME", "~other/hf")], "~other/hf/hub"),
        (&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "$DATA/c")], "/data/c"),
        (&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "~/c")], "/home/a/c"),
        (&[("HF_HUB_CACHE", "/new"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/new"),
        (&[("HF_HUB_CACHE", ""), ("HF_HOME", "")], "/home/a/.cache/huggingface/hub"),
    ] {
        assert_eq!(cache(pairs), expected, "{pairs:?}");
    }
    assert_eq!(from(&[("HF_ENDPOINT", "http://mirror/path//")]).endpoint, "http://mirror/path");
}

#[test]
fn switches() {
    let offline = |pairs: &[(&str, &str)]| from(pairs).offline;
    for (pairs, expected) in [
        (&[("HF_HUB_OFFLINE", "1")][..], true),
        (&[("HF_HUB_OFFLINE", "true")], true),
        (&[("TRANSFORMERS_OFFLINE", "YES")], true),
        (&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")], false),
        (&[("HF_HUB_OFFLINE", ""), ("TRANSFORMERS_OFFLINE", "1")], true),
        (&[("HF_HUB_OFFLINE", "no")], false),
    ] {
        assert_eq!(offline(pairs), expected, "{pairs:?}");
    }
    let network = from(&[("HF_HUB_ETAG_TIMEOUT", "3"), ("HF_HUB_DOWNLOAD_TIMEOUT", "60")]).network;
    assert_eq!((network.answer_timeout.as_secs(), network.data_timeout.as_secs()), (3, 60));
    let network = from(&[("HF_HUB_ETAG_TIMEOUT", "soon"), ("HF_HUB_DOWNLOAD_TIMEOUT", "-1")]).network;
    assert_eq!((network.answer_timeout.as_secs(), network.data_timeout.as_secs()), (10, 10));
    let off = from(&[("HF_HUB_DISABLE_PROGRESS_BARS", "1"), ("HF_HUB_DISABLE_SYMLINKS", "1")]);
    assert!(!off.progress && !off.links);
}

#[test]
fn tokens() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("token"), " stored\r\n").unwrap();
    std::fs::write(home.path().join("other"), "other\n").unwrap();
    let home = home.path().to_str().unwrap();
    let other = format!("{home}/other");
    let token = |pairs: &[(&str, &str)]| from(&[&[("HF_HOME", home)], pairs].concat()).token;
    for (pairs, expected) in [
        (&[][..], Some("stored")),
        (&[("HF_TOKEN", "t")], Some("t")),
        (&[("HF_TOKEN", " t\n"), ("HUGGING_FACE_HUB_TOKEN", "old")], Some("t")),
        (&[("HUGGING_FACE_HUB_TOKEN", "old\n")], Some("old")),
        (&[("HF_TOKEN", " \n")], Some("stored")),
        (&[("HF_TOKEN_PATH", &other)], Some("other")),
        (&[("HF_TOKEN_PATH", "/nowhere")], None),
        (&[("HF_TOKEN", "t"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")], None),
    ] {
        assert_eq!(token(pairs).as_deref(), expected, "{pairs:?}");
    }
}

#[test]
fn what_cannot_be_used_is_named_and_no_secret_shown() {
    let hub = Hub::start();
    let cache = tempfile::tempdir().unwrap();
    let empty = cache.path().join("empty.pem");
    std::fs::write(&empty, "no certificate").unwrap();
    let empty = empty.to_str().unwrap();
    let place = cache.path().join("hub");
    let place = place.to_str().unwrap();
    for (variable, value) in [
        ("HF_TOKEN", "hf_schlüssel-secret"),
        ("HF_TOKEN", "hf_secret\u{7f}"),
        ("SSL_CERT_FILE", "/no/such/secret.pem"),
        ("SSL_CERT_FILE", empty),
        ("SSL_CERT_DIR", "/no/such/folder"),
        ("REQUESTS_CA_BUNDLE", "/no/such.pem"),
        ("CURL_CA_BUNDLE", empty),
        ("HTTP_PROXY", "ftp://user:secret@proxy"),
        ("https_proxy", "http://user:secret@"),
        ("ALL_PROXY", "gopher://secret"),
        ("HF_ENDPOINT", "huggingface.co"),
        ("HF_ENDPOINT", "ftp://user:secret@huggingface.co"),
    ] {
        let pairs = [("HF_ENDPOINT", hub.address.as_str()), ("HF_HUB_CACHE", place), (variable, value)];
        let message = error("farm/tiny", from(&pairs)).to_string();
        assert!(message.starts_with(variable), "{variable}: {message}");
        assert!(variable.contains("SSL") || !message.contains("secret"), "{message}");
        assert!(!format!("{:?}", from(&pairs)).contains("secret") || variable.contains("SSL"));
    }
    assert!(hub.asked().is_empty());
}

/// A proxy that notes what it is asked for, and passes it on.
fn proxy() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let log = Arc::new(Mutex::new(Vec::new()));
    let seen = log.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let lines = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|l| !l.is_empty());
            let lines: Vec<String> = lines.collect();
            let Some(request) = lines.first() else { continue };
            seen.lock().unwrap().push(request.clone());
            let mut words = request.split(' ');
            let (method, url) = (words.next().unwrap(), words.next().unwrap());
            let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
            let mut hub = std::net::TcpStream::connect(host).unwrap();
            let rest = lines[1..].join("\r\n");
            hub.write_all(format!("{method} /{path} HTTP/1.1\r\n{rest}\r\n\r\n").as_bytes()).unwrap();
            let mut answer = Vec::new();
            let _ = hub.read_to_end(&mut answer);
            let _ = stream.write_all(&answer);
        }
    });
    (address, log)
}

#[test]
fn proxies_lie_between() {
    let hub = Hub::start();
    for (variable, value, is_used) in [
        ("HTTP_PROXY", "http://PROXY", true),
        ("http_proxy", "PROXY", true),
        ("ALL_PROXY", "http://PROXY", true),
        ("HTTPS_PROXY", "http://PROXY", false),
    ] {
        for no_proxy in ["elsewhere", "127.0.0.1"] {
            let (address, log) = proxy();
            let value = value.replace("PROXY", &address);
            let cache = tempfile::tempdir().unwrap();
            let with = HubOptions {
                network: from(&[(variable, &value), ("NO_PROXY", no_proxy)]).network,
                ..options(cache.path(), &hub.address)
            };
            open("farm/tiny", with).unwrap();
            check(cache.path(), hub.files());
            let used = !log.lock().unwrap().is_empty();
            assert_eq!(used, is_used && no_proxy == "elsewhere", "{variable} {no_proxy}");
        }
    }
}
