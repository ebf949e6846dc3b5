//! Folders as nginx and Apache list them.

use std::collections::BTreeMap;

use super::servers::{Origin, Server, apache, nginx, say};
use super::*;

/// Names that need care in URLs, in HTML, or in both.
const NAMES: [&str; 12] = [
    "plain.txt",
    "with space.txt",
    "a&b.txt",
    "100%.txt",
    "q?x=1.txt",
    "hash#1.txt",
    "c:d.txt",
    "你好.txt",
    "quote\"'<b>.txt",
    "+plus;semi.txt",
    "two..dots.rpm",
    "a-name-that-is-so-long-that-nginx-shortens-what-it-shows-of-it-in-the-listing.rpm",
];

fn fill(server: &Server, root: &str) {
    for name in NAMES {
        server.put(&format!("{root}/{name}"), name);
    }
    server.put(&format!("{root}/sub dir/deep/er/x.rpm"), "x");
    server.put(&format!("{root}/sub dir/y.rpm"), "y");
    std::fs::create_dir_all(server.www().join(root).join("empty")).unwrap();
}

fn ask(url: String) -> ListRequest {
    ListRequest::new(url.parse().unwrap(), Guard::permissive())
}

async fn check_tree(server: &Server, root: &str) {
    fill(server, root);
    let source = source(quick());
    let listing = list(&source, ask(server.url(&format!("/{root}"))), 1).await.unwrap();
    let files: BTreeMap<String, Url> =
        listing.files.iter().map(|f| (f.path.to_str().unwrap().to_owned(), f.url.clone())).collect();
    let mut expected: Vec<String> = NAMES.map(String::from).to_vec();
    expected.extend(["sub dir/y.rpm".into(), "sub dir/deep/er/x.rpm".into()]);
    expected.sort();
    assert_eq!(files.keys().cloned().collect::<Vec<_>>(), expected);
    assert_eq!(listing.files.len(), files.len(), "each once");
    for (path, url) in &files {
        let name = path.rsplit('/').next().unwrap();
        let expected = if path.contains('/') { &name[..1] } else { name };
        assert_eq!(get_all(&source, at(url)).await.unwrap(), expected.as_bytes(), "{url}");
    }

    let mut limited = ask(server.url(&format!("/{root}/")));
    limited.depth_max = 1;
    limited.include = Globs::new(["*.rpm"]).unwrap();
    let listing = list(&source, limited.clone(), 1).await.unwrap();
    assert_eq!(listing.files.len(), 3);
    assert_eq!(listing.beyond_depth, [std::path::PathBuf::from("sub dir/deep")]);
    limited.exclude = Globs::new(["sub*"]).unwrap();
    assert_eq!(list(&source, limited.clone(), 1).await.unwrap().files.len(), 2);
    limited.files_max = 1;
    assert!(matches!(list(&source, limited, 1).await, Err(ListingError::TooMany { limit: 1, .. })));
}

#[tokio::test]
async fn nginx_autoindex() {
    check_tree(&nginx(), "list/tree").await;
}

#[tokio::test]
async fn apache_autoindex_in_its_three_forms() {
    let server = apache();
    for form in ["fancy", "table", "plain"] {
        check_tree(&server, form).await;
    }
}

#[tokio::test]
async fn apache_as_an_origin() {
    let server = apache();
    let content = pattern(300_000);
    server.put("file", &content);
    let source = source(quick());
    let response = source.get(part(server.url("/file"), 100_000, 200_000)).await.unwrap();
    assert_eq!(response.range, ByteRange::new(100_000, 200_000));
    let known = response.validators.clone();
    assert_eq!(read(response).await.unwrap(), content[100_000..200_000]);
    let again = OriginRequest { if_none_match: Some(known.clone()), ..at(server.url("/file")) };
    assert!(source.get(again).await.unwrap().not_modified);
    let error = source.get(part(server.url("/file"), 300_000, 300_001)).await.unwrap_err();
    // Unlike nginx, Apache does not tell the length then.
    assert!(matches!(error, SourceError::RangeNotSatisfiable { total: None, .. }), "{error:?}");
    // Replaced by an older file: by its date alone Apache calls it not modified.
    server.put("file", "older");
    let old = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(900_000_000);
    std::fs::File::options().write(true).open(server.www().join("file")).unwrap().set_modified(old).unwrap();
    let dated = Validators { etag: None, ..known };
    let again = OriginRequest { if_none_match: Some(dated), ..at(server.url("/file")) };
    let response = source.get(again).await.unwrap();
    assert!(!response.not_modified, "{response:?}");
    assert_eq!(read(response).await.unwrap(), b"older");
}

#[tokio::test]
async fn credentials_reach_every_folder() {
    let server = nginx();
    server.put("private/tree/a/b.txt", "b");
    let url = format!("http://us%20er:p%20%40w@127.0.0.1:{}/private/tree/", server.port);
    let listing = list(&source(quick()), ask(url), 1).await.unwrap();
    assert_eq!(listing.files.len(), 1);
    // The file's URL can be fetched as it is, and shows nothing.
    assert_eq!(get_all(&source(quick()), at(listing.files[0].url.as_str())).await.unwrap(), b"b");
    assert!(!format!("{listing:?}").contains("%40w"));
    let error = list(&source(quick()), ask(server.url("/private/tree/")), 1).await.unwrap_err();
    assert_eq!(error.kind(), proto::Kind::Unauthorized);
}

#[tokio::test]
async fn pages_that_are_no_listing_or_a_trap() {
    let page = |html: &str| {
        say(format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{html}", html.len()))
    };
    let origin = Origin::start(move |seen, _| match seen.path() {
        "/empty/" => page("<title>Index of /empty/</title><a href=\"../\">../</a>"),
        "/start/" => page("<title>Welcome</title><a href=\"/elsewhere\">go</a>"),
        "/trap/" => page("<title>Index of /</title><a href=\"ok\">ok</a><a href=\"..%2f..%2fetc%2fpasswd\">x</a>"),
        "/leave/" => page("<title>Index of /</title><a href=\"sub/\">sub</a>"),
        "/leave/sub/" => say("HTTP/1.1 302 F\r\nLocation: /empty/\r\nContent-Length: 0\r\n\r\n"),
        "/binary/" => say("HTTP/1.1 200 OK\r\nContent-Type: application/gzip\r\nContent-Length: 1\r\n\r\nx"),
        path if path.starts_with("/endless/") => page("<title>Index of /</title><a href=\"more/\">more</a>"),
        _ => say("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"),
    })
    .await;
    let source = source(quick());
    let ask_for = |path: &str| ask(origin.url(path));
    assert!(list(&source, ask_for("/empty"), 1).await.unwrap().files.is_empty());
    assert!(matches!(list(&source, ask_for("/start/"), 1).await, Err(ListingError::NotAListing { .. })));
    assert!(matches!(list(&source, ask_for("/binary/"), 1).await, Err(ListingError::NotAListing { .. })));
    let error = list(&source, ask_for("/trap/"), 1).await.unwrap_err();
    assert!(matches!(&error, ListingError::UnsafeName { name, .. } if name == "../../etc/passwd"), "{error:?}");
    assert!(matches!(list(&source, ask_for("/leave/"), 1).await, Err(ListingError::Left { .. })));
    assert_eq!(list(&source, ask_for("/nothing/"), 1).await.unwrap_err().kind(), proto::Kind::NotFound);
    let endless = list(&source, ask_for("/endless/"), 1).await.unwrap();
    assert_eq!((endless.files.len(), endless.beyond_depth.len()), (0, 1));
}

#[tokio::test]
async fn a_folder_that_moved_to_another_origin_takes_no_credentials_along() {
    let page = |html: &str| {
        say(format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{html}", html.len()))
    };
    let there = Origin::start(move |seen, _| match seen.path() {
        "/pub/" => page("<title>Index of /pub/</title><a href=\"sub/\">sub</a><a href=x>x</a>"),
        _ => page("<title>Index of /pub/sub/</title><a href=y>y</a>"),
    })
    .await;
    let to = there.url("/pub/");
    let here =
        Origin::start(move |_, _| say(format!("HTTP/1.1 301 M\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n"))).await;
    let source = source(quick());
    let mut request = ask(here.url("/pub/"));
    let listing = list(&source, request.clone(), 1).await.unwrap();
    assert_eq!(
        listing.files.iter().map(|f| f.url.as_str()).collect::<Vec<_>>(),
        [there.url("/pub/x"), there.url("/pub/sub/y")]
    );
    request.headers.insert("authorization", "Bearer x".parse().unwrap());
    assert!(matches!(list(&source, request, 1).await, Err(ListingError::Moved { .. })));
    let with_userinfo = here.url("/pub/").replace("http://", "http://u:p@");
    assert!(matches!(list(&source, ask(with_userinfo), 1).await, Err(ListingError::Moved { .. })));
    assert!(there.seen().iter().all(|seen| seen.header("authorization").is_none()));
}
