//! The load balancer: turns, headers, bodies that are not held back.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::Duration,
};

use harness::{Authority, Curl, Host, LoadBalancer, Run};

/// Answers every request with its head; the head of each is also told at once, before its body is read. Lives as
/// long as the test's process.
fn echo() -> (SocketAddr, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let (told, heads) = mpsc::channel();
    thread::spawn(move || {
        for connection in listener.incoming() {
            let told = told.clone();
            thread::spawn(move || serve(&connection.unwrap(), &told));
        }
    });
    (addr, heads)
}

fn serve(connection: &TcpStream, told: &mpsc::Sender<String>) {
    let mut reader = BufReader::new(connection);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let _ = told.send(head.clone());
        let length = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len());
        if (&mut &*connection).write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = head.lines().filter_map(|line| line.split_once(": "));
    pairs.find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

#[test]
fn requests_take_turns_and_say_where_they_come_from() {
    let (run, host) = (Run::new().unwrap(), Host::local());
    let ((one, _first), (two, _second)) = (echo(), echo());
    let balancer = LoadBalancer::start(&host, &run, &[one, two], None).unwrap();
    // One connection, so that it is the requests that take turns.
    let urls: Vec<String> = (0..5).map(|number| balancer.url(&format!("/v2/{number}"))).collect();
    let last = Curl::new(&host).args(urls).get(&balancer.url("/v2/5")).unwrap();
    assert_eq!(last.status, 200);
    let head = String::from_utf8(last.body).unwrap();
    assert_eq!(header(&head, "host"), Some(balancer.name().as_str()), "{head}");
    assert_eq!(header(&head, "x-forwarded-host"), Some(balancer.name().as_str()), "{head}");
    assert_eq!(header(&head, "x-forwarded-proto"), Some("http"), "{head}");
    assert_eq!(header(&head, "x-forwarded-for"), Some("127.0.0.1"), "{head}");
    assert_eq!(balancer.answered().unwrap(), [(one, 3), (two, 3)].into());
}

#[test]
fn a_process_that_is_down_is_passed_over() {
    let (run, host) = (Run::new().unwrap(), Host::local());
    let (up, _heads) = echo();
    let down = host.addr(host.free_port().unwrap());
    let balancer = LoadBalancer::start(&host, &run, &[down, up], None).unwrap();
    for method in ["GET", "POST", "PATCH", "PUT"] {
        let reply = Curl::new(&host).args(["-X", method]).get(&balancer.url("/")).unwrap();
        assert_eq!(reply.status, 200, "{method}");
    }
    assert_eq!(balancer.answered().unwrap(), [(up, 4)].into());
}

#[test]
fn tls_ends_at_the_balancer() {
    let (run, host) = (Run::new().unwrap(), Host::local());
    let authority = Authority::new(run.path()).unwrap();
    let certificate = authority.issue("balancer", &["localhost"], &[host.ip()]).unwrap();
    let (behind, _heads) = echo();
    let balancer = LoadBalancer::start(&host, &run, &[behind], Some(&certificate)).unwrap();
    assert!(Curl::new(&host).get(&balancer.url("/")).is_err(), "the authority is private");
    let reply = Curl::new(&host).ca(authority.path()).get(&balancer.url("/")).unwrap();
    let head = String::from_utf8(reply.body).unwrap();
    assert_eq!(header(&head, "x-forwarded-proto"), Some("https"), "{head}");
}

#[test]
fn bodies_are_not_held_back() {
    let (run, host) = (Run::new().unwrap(), Host::local());
    let (behind, heads) = echo();
    let balancer = LoadBalancer::start(&host, &run, &[behind], None).unwrap();
    let mut client = TcpStream::connect(balancer.addr()).unwrap();
    // A quarter of the body, which is longer than nginx takes unless it is told to take any.
    let length = 4 << 20;
    write!(client, "PUT /big HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n").unwrap();
    client.write_all(&vec![1; length / 4]).unwrap();
    let head = heads.recv_timeout(Duration::from_secs(10)).expect("the request is passed on before its body ends");
    assert!(head.starts_with("PUT /big "), "{head}");
    client.write_all(&vec![1; length / 4 * 3]).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}
