//! Many lives, each of its own seed, on all processors. Of `simulation` and `power`.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

/// How often each thing happened: a run that meets none of something proves nothing about it.
pub type Coverage = BTreeMap<&'static str, u64>;

/// From so many lives on, all that must happen must have happened.
const ENOUGH: u64 = 1000;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

fn add(total: &mut Coverage, more: Coverage) {
    for (name, count) in more {
        *total.entry(name).or_default() += count;
    }
}

/// So many lives, or as `RINGDRIVE_SEED` and `RINGDRIVE_SEEDS` say; `must_happen` are the marks of all of them together. `live` is told the
/// seed, and whether to print what happens.
pub fn live_all(
    seeds: u64,
    must_happen: &[&str],
    live: impl Fn(u64, bool) -> Result<Coverage, String> + Sync,
) -> Coverage {
    if let Some(seed) = variable("RINGDRIVE_SEED") {
        return live(seed, true).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
    let seeds = variable("RINGDRIVE_SEEDS").unwrap_or(seeds);
    let next = AtomicU64::new(0);
    let batch = || {
        let (mut coverage, mut failures) = (Coverage::new(), Vec::new());
        loop {
            match next.fetch_add(1, Ordering::Relaxed) {
                seed if seed >= seeds => return (coverage, failures),
                seed => match live(seed, false) {
                    Ok(more) => add(&mut coverage, more),
                    Err(why) => failures.push((seed, why)),
                },
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let (mut coverage, mut failures) = (Coverage::new(), Vec::new());
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(batch)).collect();
        for worker in workers {
            let (more, failed) = worker.join().unwrap();
            add(&mut coverage, more);
            failures.extend(failed);
        }
    });
    failures.sort();
    for (seed, why) in failures.iter().take(10) {
        println!("seed {seed}: {why}; RINGDRIVE_SEED={seed} runs it again");
    }
    assert!(failures.is_empty(), "{} of {seeds} lives failed", failures.len());
    println!("{seeds} lives: {coverage:#?}");
    let missing: Vec<_> = must_happen.iter().filter(|name| !coverage.contains_key(**name)).collect();
    assert!(seeds < ENOUGH || missing.is_empty(), "{seeds} lives never met {missing:?}");
    coverage
}
