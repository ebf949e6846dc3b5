//! MariaDB and PostgreSQL: durable, private, and back after a kill.

use std::time::Duration;

use harness::{Host, MariaDb, Postgres, Run};

#[test]
fn mariadb_keeps_what_it_committed() {
    let (run, host) = (Run::new().unwrap(), Host::local());
    let mut server = MariaDb::start(&host, &run).unwrap();
    assert_eq!(server.url(), format!("mysql://skimmer:of-one-test-run@{}/registry", server.addr()));
    assert_eq!(server.sql("registry", "SELECT @@innodb_flush_log_at_trx_commit, DATABASE()").unwrap(), "1\tregistry\n");
    let url = server.database("other_1").unwrap();
    assert!(url.ends_with("/other_1"), "{url}");
    assert!(server.database("other_1").is_err(), "there is one already");
    assert!(server.database("a;b").is_err(), "not a name");
    server.sql("other_1", "CREATE TABLE t (x INT PRIMARY KEY) ENGINE=InnoDB; INSERT INTO t VALUES (7)").unwrap();
    server.kill().unwrap();
    assert!(server.sql("other_1", "SELECT x FROM t").is_err(), "it still answers");
    server.restart().unwrap();
    assert_eq!(server.sql("other_1", "SELECT x FROM t").unwrap(), "7\n");
}

#[test]
fn postgres_keeps_what_it_committed() {
    let (run, host) = (Run::new().unwrap(), Host::local());
    let mut server = Postgres::start(&host, &run).unwrap();
    assert_eq!(server.url(), format!("postgres://skimmer:of-one-test-run@{}/registry", server.addr()));
    assert_eq!(server.sql("registry", "SHOW fsync").unwrap(), "on\n");
    assert_eq!(server.sql("registry", "SELECT current_setting('synchronous_commit'), 1").unwrap(), "on\t1\n");
    let url = server.database("other_1").unwrap();
    assert!(url.ends_with("/other_1"), "{url}");
    assert!(server.database("other_1").is_err(), "there is one already");
    assert!(server.database("Other").is_err(), "not a name");
    server.sql("other_1", "CREATE TABLE t (x INT PRIMARY KEY); INSERT INTO t VALUES (7)").unwrap();
    // Each connection is a process of its own, which must go too.
    let mut busy = host.program("psql").args([&url, "-c", "SELECT pg_sleep(600)"]).start(&run, "busy").unwrap();
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'";
    busy.wait_until("busy connection", Duration::from_secs(10), |_| server.sql("registry", sleeping).unwrap() == "1\n")
        .unwrap();
    server.kill().unwrap();
    assert!(!busy.wait(Duration::from_secs(10)).unwrap().success(), "its connection survived");
    assert!(server.sql("other_1", "SELECT x FROM t").is_err(), "it still answers");
    server.restart().unwrap();
    assert_eq!(server.sql("other_1", "SELECT x FROM t").unwrap(), "7\n");
}

#[test]
fn databases_run_beside_each_other() {
    let (run, host) = (Run::new().unwrap(), Host::local());
    let one = MariaDb::start_with(&host, &run, &["--max-connections=17"]).unwrap();
    let two = MariaDb::start(&host, &run).unwrap();
    assert_ne!(one.addr(), two.addr());
    assert_eq!(one.sql("registry", "SELECT @@max_connections").unwrap(), "17\n");
    assert_eq!(two.sql("registry", "SELECT @@max_connections").unwrap(), "300\n");
    let three = Postgres::start_with(&host, &run, &["max_connections=18"]).unwrap();
    assert_eq!(three.sql("registry", "SHOW max_connections").unwrap(), "18\n");
}
