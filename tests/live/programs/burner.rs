//! Spends known shares of its time in functions of its own: 50, 30 and 20 percent.
//!
//! `burner run SECONDS`; says '.' when the time is spent, and stays until its input ends.

use std::{
    env,
    hint::black_box,
    io::{self, Read, Write},
    time::{Duration, Instant},
};

/// A round of one percent; each depends on the one before, so that all take the same time.
#[inline(always)]
fn spend(percent: u32) -> u64 {
    let mut number = 1_u64;
    for _ in 0..percent * 20_000 {
        number = black_box(number).wrapping_mul(6_364_136_223_846_793_005) + 1;
    }
    number
}

#[inline(never)]
fn burn_fifty() {
    black_box(spend(50));
}

#[inline(never)]
fn burn_thirty() {
    black_box(spend(30));
}

#[inline(never)]
fn burn_twenty() {
    black_box(spend(20));
}

#[inline(never)]
fn round_of_burning() {
    burn_fifty();
    burn_thirty();
    burn_twenty();
    black_box(());
}

fn main() {
    let seconds = env::args().nth(2).and_then(|word| word.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(1));
    while Instant::now() < end {
        round_of_burning();
    }
    io::stdout().write_all(b".").unwrap();
    io::stdout().flush().unwrap();
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
}
