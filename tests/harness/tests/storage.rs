//! MinIO and versitygw: buckets and objects, there again after a kill.

use std::fs;

use harness::{Host, Run, S3Kind, S3Server};

#[test]
fn minio_keeps_objects() {
    keeps_objects(S3Kind::Minio);
}

#[test]
fn versitygw_keeps_objects() {
    keeps_objects(S3Kind::Versitygw);
}

fn keeps_objects(kind: S3Kind) {
    let (run, host) = (Run::new().unwrap(), Host::local());
    let mut server = S3Server::start(kind, &host, &run).unwrap();
    assert_eq!(server.bucket("registry").unwrap(), "registry");
    assert!(server.bucket("no_bucket/").is_err(), "not a name");
    let (file, url) = (run.path().join("object"), format!("{}/registry/a/b", server.endpoint()));
    fs::write(&file, "content").unwrap();
    let put = server.curl().args(["-T".to_owned(), file.display().to_string()]).get(&url).unwrap();
    assert_eq!(put.status, 200, "{put:?}");
    let stranger = harness::Curl::new(&host).get(&url).unwrap();
    assert_eq!(stranger.status, 403, "objects are not for everybody");
    server.kill().unwrap();
    assert!(server.curl().get(&url).is_err(), "it still answers");
    server.restart().unwrap();
    assert_eq!(server.curl().get(&url).unwrap().body, b"content");
    assert_eq!(server.curl().args(["-X", "DELETE"]).get(&url).unwrap().status, 204);
    assert_eq!(server.curl().get(&url).unwrap().status, 404);
    let store = server.store("registry");
    assert!(store.contains(&format!("endpoint = \"{}\"\nbucket = \"registry\"\n", server.endpoint())), "{store}");
}
