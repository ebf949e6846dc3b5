//! The load tool against a server that is a few lines long.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use proto::Algorithm;

use super::*;

/// What the server heard: method, target, and the sha256 of the body.
type Heard = Arc<Mutex<Vec<(String, String, Digest)>>>;

/// Starts a server that answers every request with what `answer` makes of its method and target.
fn server(answer: impl Fn(&str, &str, &str) -> String + Send + Sync + 'static) -> (Target, Heard) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = Target::new(listener.local_addr().unwrap());
    let (heard, answer) = (Heard::default(), Arc::new(answer));
    let (told, authority) = (Arc::clone(&heard), target.authority.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (answer, told, authority) = (Arc::clone(&answer), Arc::clone(&told), authority.clone());
            std::thread::spawn(move || {
                serve(stream.unwrap(), &told, |method, target| answer(method, target, &authority))
            });
        }
    });
    (target, heard)
}

fn serve(stream: TcpStream, told: &Heard, answer: impl Fn(&str, &str) -> String) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let (mut first, mut length) = (String::new(), 0);
        if reader.read_line(&mut first).unwrap_or(0) == 0 {
            return;
        }
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if line == "\r\n" {
                break;
            }
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let (method, rest) = first.split_once(' ').unwrap();
        let target = rest.strip_suffix(" HTTP/1.1\r\n").unwrap();
        told.lock().unwrap().push((method.to_owned(), target.to_owned(), Digest::of(Algorithm::Sha256, &body)));
        let text = answer(method, target);
        (&stream).write_all(text.as_bytes()).unwrap();
        if text.contains("Connection: close") {
            return;
        }
    }
}

/// A fixed list of jobs.
struct List {
    jobs: Vec<Job>,
    done: Vec<(usize, Result<Answer>)>,
}

impl Work for List {
    fn next(&mut self, _client: usize) -> Next {
        self.jobs.pop().map_or(Next::End, Next::Job)
    }

    fn done(&mut self, _client: usize, done: Done) -> Result<()> {
        self.done.push((done.job.id, done.result));
        Ok(())
    }
}

fn run(target: &Target, clients: usize, tasks: Vec<Task>) -> Vec<(usize, Result<Answer>)> {
    let jobs = tasks.into_iter().enumerate().map(|(id, task)| Job { id, task }).collect();
    let mut list = List { jobs, done: Vec::new() };
    drive(target, clients, &mut list).unwrap();
    list.done.sort_by_key(|(id, _)| *id);
    list.done
}

fn registry(method: &str, target: &str, authority: &str) -> String {
    match (method, target) {
        ("POST", "/v2/relative/blobs/uploads/") => {
            "HTTP/1.1 202 Accepted\r\nLocation: /up/1\r\nContent-Length: 0\r\n\r\n".into()
        }
        ("POST", _) => format!(
            "HTTP/1.1 202 Accepted\r\nLocation: http://{authority}/up/2?_state=a%3D\r\nContent-Length: 0\r\n\r\n"
        ),
        ("PATCH", _) => {
            "HTTP/1.1 202 Accepted\r\nLocation: /up/3?_state=b\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
                .into()
        }
        _ => "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n".into(),
    }
}

#[test]
fn uploads_follow_their_locations_and_arrive_whole() {
    let (target, heard) = server(registry);
    let mut contents = Contents::new(1, 3_000_000);
    let blobs = [contents.blob(3_000_000), contents.blob(1_000), contents.blob(9_000_000)];
    let push = |repository: &str, blob: &Blob, chunked| {
        Task::Push(Push::new(target.start_upload(repository), blob.clone(), chunked))
    };
    let tasks =
        vec![push("relative", &blobs[0], false), push("absolute", &blobs[1], false), push("absolute", &blobs[2], true)];
    for (id, result) in run(&target, 2, tasks) {
        assert!(result.is_ok(), "{id}: {result:?}");
    }
    let heard = heard.lock().unwrap();
    let empty = Digest::of(Algorithm::Sha256, b"");
    let expect = |method: &str, target: String, digest: &Digest| {
        assert!(heard.contains(&(method.to_owned(), target.clone(), digest.clone())), "{method} {target}: {heard:?}");
    };
    expect("PUT", format!("/up/1?digest={}", blobs[0].digest()), blobs[0].digest());
    expect("PUT", format!("/up/2?_state=a%3D&digest={}", blobs[1].digest()), blobs[1].digest());
    expect("PATCH", "/up/2?_state=a%3D".into(), blobs[2].digest());
    expect("PUT", format!("/up/3?_state=b&digest={}", blobs[2].digest()), &empty);
    assert_eq!(heard.len(), 7);
}

#[test]
fn bodies_are_counted_hashed_or_kept_however_they_are_framed() {
    let body = "x".repeat(700_000);
    let digest = Digest::of(Algorithm::Sha256, body.as_bytes());
    let (target, _) = server(move |_, target, _| match target {
        "/chunked" => {
            let (one, two) = body.split_at(100_000);
            format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{one}\r\n{:x}\r\n{two}\r\n0\r\n\r\n",
                one.len(),
                two.len()
            )
        }
        _ => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
    });
    let mut tasks = Vec::new();
    for path in ["/plain", "/chunked"] {
        for keep in [Keep::Nothing, Keep::Digest, Keep::Body] {
            tasks.push(Task::Request(target.request("GET", path, "").keep(keep)));
        }
    }
    for (id, result) in run(&target, 1, tasks) {
        let answer = result.unwrap();
        assert_eq!(answer.body_bytes, 700_000, "{id}");
        match id % 3 {
            0 => assert_eq!(answer.kept, Kept::Nothing),
            1 => assert_eq!(answer.kept, Kept::Digest(digest.clone())),
            _ => assert!(matches!(answer.kept, Kept::Body(body) if body.len() == 700_000)),
        }
    }
}

#[test]
fn failures_are_told_and_the_connection_goes_on() {
    let (target, _) = server(|method, target, _| match (method, target) {
        ("GET", "/broken") => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nabc".into(),
        ("GET", "/missing") => "HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nno such 1".into(),
        _ => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".into(),
    });
    let get = |path: &str| Task::Request(target.request("GET", path, ""));
    let head = Task::Request(target.request("HEAD", "/missing", "").expect(404));
    let done = run(&target, 1, vec![get("/"), get("/broken"), get("/"), get("/missing"), head, get("/")]);
    let failed: Vec<usize> = done.iter().filter(|(_, result)| result.is_err()).map(|(id, _)| *id).collect();
    // HEAD /missing is answered as any other path here.
    assert_eq!(failed, [1, 3, 4]);
    let text = format!("{:#}", done[3].1.as_ref().unwrap_err());
    assert!(text.contains("404") && text.contains("no such 1") && text.contains("/missing"), "{text}");
}

#[test]
fn a_client_may_wait_for_a_moment() {
    struct Late(Option<Instant>, Vec<Instant>, Target);
    impl Work for Late {
        fn next(&mut self, _client: usize) -> Next {
            match self.0 {
                Some(until) if Instant::now() < until => Next::Wait(until),
                Some(_) => {
                    self.0 = None;
                    Next::Job(Job { id: 0, task: Task::Request(self.2.request("GET", "/", "")) })
                }
                None => Next::End,
            }
        }

        fn done(&mut self, _client: usize, done: Done) -> Result<()> {
            self.1.push(done.began);
            done.result.map(drop)
        }
    }
    let (target, _) = server(|_, _, _| "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".into());
    let until = Instant::now() + Duration::from_millis(50);
    let mut late = Late(Some(until), Vec::new(), target.clone());
    drive(&target, 3, &mut late).unwrap();
    assert!(late.1.len() == 1 && late.1[0] >= until);
}
