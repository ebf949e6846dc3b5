use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::*;

const MB: u64 = 1_000_000;

/// Bytes that `callers` get through in `time`, taking `step` at a time.
async fn measure(limit: &Limit, callers: usize, step: u64, time: Duration) -> u64 {
    let mut tasks = JoinSet::new();
    let end = Instant::now() + time;
    for _ in 0..callers {
        let limit = limit.clone();
        tasks.spawn(async move {
            let mut bytes = 0;
            while tokio::time::timeout_at(end, limit.take(step)).await.is_ok() && Instant::now() < end {
                bytes += step;
            }
            bytes
        });
    }
    tasks.join_all().await.into_iter().sum()
}

fn assert_within(bytes: u64, expected: u64, percent: u64) {
    let slack = expected * percent / 100;
    assert!(bytes.abs_diff(expected) <= slack, "{bytes} bytes, expected {expected} within {percent} %");
}

#[tokio::test(start_paused = true)]
async fn limit_holds_within_five_percent_over_ten_seconds() {
    for (rate, callers, step) in
        [(6_250_000, 1, 262_144), (6_250_000, 16, 65_536), (500_000, 3, 4_096), (1_250 * MB, 4, MB)]
    {
        let limit = Limit::new(Some(rate));
        let bytes = measure(&limit, callers, step, Duration::from_secs(10)).await;
        assert_within(bytes, rate * 10, 5);
    }
}

#[tokio::test(start_paused = true)]
async fn limit_holds_with_three_equal_levels_and_large_takes() {
    let peer = Limit::new(Some(MB)).child(Some(MB)).child(Some(MB));
    let bytes = measure(&peer, 1, 200_000, Duration::from_secs(20)).await;
    assert_within(bytes, 20 * MB, 5);
}

#[tokio::test(start_paused = true)]
async fn limit_of_the_host_is_shared_by_tasks_that_have_their_own() {
    let host = Limit::new(Some(10 * MB));
    let (slow, free) = (host.child(Some(2 * MB)), host.child(None));
    let time = Duration::from_secs(10);
    let (slow, free) = tokio::join!(measure(&slow, 2, 65_536, time), measure(&free, 2, 65_536, time));
    assert_within(slow + free, 100 * MB, 5);
    assert_within(slow, 20 * MB, 5);
}

#[tokio::test(start_paused = true)]
async fn limit_serves_equal_callers_equally() {
    let host = Limit::new(Some(10 * MB));
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let task = host.child(None);
        tasks.spawn(async move { measure(&task, 1, 65_536, Duration::from_secs(10)).await });
    }
    let shares = tasks.join_all().await;
    for share in shares {
        assert_within(share, 12_500_000, 5);
    }
}

#[tokio::test(start_paused = true)]
async fn limit_changes_for_those_who_wait() {
    let host = Limit::new(Some(1000));
    let task = host.child(None);
    task.take(64 * 1024).await;
    // An hour at the old rate.
    let waiting = tokio::spawn(async move { task.take(3_600_000).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let start = Instant::now();
    host.set(Some(100 * MB));
    waiting.await.expect("no panic");
    assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn limit_follows_up_and_down_within_a_second() {
    let host = Limit::new(Some(6_250_000));
    let second = Duration::from_secs(1);
    measure(&host, 4, 65_536, second).await;
    for rate in [1_250_000, 12_500_000, 3_000_000] {
        host.set(Some(rate));
        measure(&host, 4, 65_536, second).await;
        // `measure` cuts its callers off in mid-take, which costs them a step each.
        let bytes = measure(&host, 4, 65_536, Duration::from_secs(10)).await;
        assert_within(bytes, rate * 10, 5);
    }
}

#[tokio::test(start_paused = true)]
async fn limit_taken_away_frees_those_who_wait_and_zero_holds_them() {
    let limit = Limit::new(Some(0));
    limit.take(64 * 1024).await;
    let waiter = limit.clone();
    let waiting = tokio::spawn(async move { waiter.take(10 * MB).await });
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!waiting.is_finished());
    limit.set(None);
    timeout(Duration::from_millis(1), waiting).await.expect("freed").expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn limit_forgets_those_who_gave_up() {
    let limit = Limit::new(Some(MB));
    limit.take(64 * 1024).await;
    let start = Instant::now();
    for _ in 0..20 {
        // A millisecond is the timer's step; 60 would suffice.
        assert!(timeout(Duration::from_millis(1), limit.take(60_000)).await.is_err());
    }
    limit.take(60_000).await;
    assert!(start.elapsed() < Duration::from_millis(65), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn limit_that_is_none_never_waits() {
    let limit = Limit::unlimited().child(None).child(None);
    let start = Instant::now();
    for _ in 0..100_000 {
        limit.take(u64::MAX).await;
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!((limit.rate(), limit.effective_rate()), (None, None));
}

#[test]
fn limit_steps_follow_the_rate() {
    let host = Limit::new(None);
    let task = host.child(None);
    assert_eq!(task.step_bytes(), 1024 * 1024);
    host.set(Some(6_250_000));
    assert_eq!(task.step_bytes(), 256 * 1024);
    host.set(Some(2_000_000));
    assert_eq!(task.step_bytes(), 100_000);
    task.set(Some(1));
    assert_eq!(task.step_bytes(), 4 * 1024);
}

/// The one test on the real clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limit_holds_in_real_time() {
    let rate = 20 * MB;
    let host = Limit::new(Some(rate));
    let bytes = measure(&host, 4, 65_536, Duration::from_secs(2)).await;
    // The burst, 50 ms of the rate, weighs 2.5 % here.
    assert_within(bytes, rate * 2, 6);
}
