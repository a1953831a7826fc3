//! The linked library as a program uses it.

mod alone;
mod faults;
mod methods;
mod outside;
mod sandbox;
mod sessions;
mod tickets;
mod whole;

use std::path::Path;
use std::time::Duration;

use stillframe::region::{Builder, Session};

/// Longer than anything here takes on a machine that is busy with something else.
const LONG: Duration = Duration::from_secs(120);

fn builder(store: &Path) -> Builder {
    Session::builder("test").store(store)
}

/// Numbers that do not repeat, different for each seed.
fn noise(seed: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(seed.wrapping_mul(2).wrapping_add(1)), |x| Some(x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407)))
}

fn fill(region: &mut [u64], seed: u64) {
    region.iter_mut().zip(noise(seed)).for_each(|(slot, number)| *slot = number);
}

fn holds(region: &[u64], seed: u64) -> bool {
    region.iter().zip(noise(seed)).all(|(slot, number)| *slot == number)
}
