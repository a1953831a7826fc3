//! How much slower a solver is that takes a snapshot now and then.

use std::path::Path;
use std::time::{Duration, Instant};

use stillframe::region::{Level, Region, Session};

use super::blocking::{session, snapshot};
use super::{name, Missed, Outcome, LONG, METHODS, SHARES};

/// What it may lose, in percent.
const SLOWER: f64 = 10.0;

/// Numbers in a row of the grid.
const ROW: usize = 8192;

/// One step of a solver of the heat equation on a grid: every cell's residual is computed, and `share` percent of the rows are
/// advanced by it. Returns the sum of the residuals.
fn step(grid: &mut [f64], share: usize) -> f64 {
    let (mut sum, every) = (0.0, 100 / share);
    for row in 1..grid.len() / ROW - 1 {
        let (above, rest) = grid[(row - 1) * ROW..(row + 2) * ROW].split_at_mut(ROW);
        let (here, below) = rest.split_at_mut(ROW);
        let residual = |here: &[f64], at: usize| above[at] + below[at] + here[at - 1] + here[at + 1] - 4.0 * here[at];
        match row % every {
            0 => {
                for at in 1..ROW - 1 {
                    let change = residual(here, at);
                    here[at] += 0.1 * change;
                    sum += change.abs();
                }
            }
            _ => sum += (1..ROW - 1).map(|at| residual(here, at).abs()).sum::<f64>(),
        }
    }
    sum
}

/// Steps for as long as `time`; how many they were.
fn steps(grid: &mut [f64], share: usize, time: Duration, mut now_and_then: impl FnMut(Duration) -> Outcome<()>) -> Outcome<f64> {
    let (begun, mut done, mut sum) = (Instant::now(), 0.0, 0.0);
    while begun.elapsed() < time {
        sum += step(grid, share);
        done += 1.0;
        now_and_then(begun.elapsed())?;
    }
    std::hint::black_box(sum);
    // The last step goes beyond the time.
    Ok(done * time.as_secs_f64() / begun.elapsed().as_secs_f64())
}

fn begin(grid: &mut [f64]) {
    grid.iter_mut().enumerate().for_each(|(at, cell)| *cell = (at % 1013) as f64);
}

/// A snapshot in `time`, after a first one, which is not what a program pays every ten seconds.
fn linked(session: &Session, grid: &mut Region<f64>, share: usize, time: Duration) -> Outcome<f64> {
    let mut ticket = None;
    let with = steps(grid, share, time, |passed| {
        if ticket.is_none() && passed > time / 10 {
            ticket = Some(session.snapshot(&())?);
        }
        Ok(())
    })?;
    ticket.map_or(Ok(()), |ticket| ticket.wait(Level::Stored, LONG).map(drop))?;
    Ok(with)
}

pub fn compare(store: &Path, count: usize, time: Duration, missed: &mut Missed) -> Outcome<()> {
    println!("\nsteps in {} s: without the library (before and after), and in a region with one snapshot", time.as_secs());
    println!("{:<20} {:>6} {:>12} {:>14} {:>9} {:>12}", "solver", "dirty", "without", "with snapshot", "slower %", "bar");
    let mut plain = vec![0f64; count];
    for share in SHARES {
        for method in METHODS {
            let session = session(store, method)?;
            let mut grid: Region<f64> = session.alloc("grid", count)?;
            [&mut plain[..], &mut grid].into_iter().for_each(begin);
            snapshot(&session)?;
            let mut without = || steps(&mut plain, share, time / 2, |_| Ok(()));
            let before = without()?;
            let with = linked(&session, &mut grid, share, time)?;
            let without = before + without()?;
            let slower = 100.0 * (1.0 - with / without);
            println!("{:<20} {share:>4} % {without:>12.1} {with:>14.1} {slower:>9.1} {:>12}", name(method), missed.hold(slower, SLOWER));
        }
    }
    Ok(())
}
