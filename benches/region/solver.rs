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

/// Both take turns, so that a machine that is faster at one time than at another is so for both.
const TURNS: u32 = 4;

/// Steps without the library, and with one snapshot, which is taken in the first turn.
fn in_turns(session: &Session, plain: &mut [f64], grid: &mut Region<f64>, share: usize, time: Duration) -> Outcome<(f64, f64)> {
    let (mut without, mut with, mut ticket) = (0.0, 0.0, None);
    for _ in 0..TURNS {
        without += steps(plain, share, time / TURNS, |_| Ok(()))?;
        with += steps(grid, share, time / TURNS, |passed| {
            if ticket.is_none() && passed > time / 40 {
                ticket = Some(session.snapshot(&())?);
            }
            Ok(())
        })?;
    }
    ticket.map_or(Ok(()), |ticket| ticket.wait(Level::Stored, LONG).map(drop))?;
    Ok((without, with))
}

pub fn compare(store: &Path, count: usize, time: Duration, missed: &mut Missed) -> Outcome<()> {
    println!("\nsteps in {} s: without the library, and in turns with that in a region with one snapshot", time.as_secs());
    println!("{:<20} {:>6} {:>12} {:>14} {:>9} {:>12}", "solver", "dirty", "without", "with snapshot", "slower %", "bar");
    let mut plain = vec![0f64; count];
    for share in SHARES {
        for method in METHODS {
            let session = session(store, method)?;
            let mut grid: Region<f64> = session.alloc("grid", count)?;
            [&mut plain[..], &mut grid].into_iter().for_each(begin);
            // The first one is not what a program pays every ten seconds.
            snapshot(&session)?;
            let (without, with) = in_turns(&session, &mut plain, &mut grid, share, time)?;
            let slower = 100.0 * (1.0 - with / without);
            println!("{:<20} {share:>4} % {without:>12.1} {with:>14.1} {slower:>9.1} {:>12}", name(method), missed.hold(slower, SLOWER));
        }
    }
    Ok(())
}
