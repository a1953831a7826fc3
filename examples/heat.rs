//! A heat solver that survives `kill -9`: started again with the same store, it goes on where its newest snapshot was, and ends
//! with the same bits as if nothing had happened.
//!
//! `heat STORE [STEPS [SIZE [STEPS-BETWEEN-SNAPSHOTS]]]`; it prints a checksum of the grid at the end.

use std::error::Error;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use stillframe::error::Kind;
use stillframe::region::{Level, Session};

/// What has to be known besides the grid.
#[derive(Serialize, Deserialize)]
struct State {
    step: u64,
    /// Of a generator that drops a spark somewhere now and then.
    seed: u64,
}

/// One step of the five-point stencil, from one half of the grid into the other.
fn step(from: &[f64], to: &mut [f64], size: usize) {
    for row in 1..size - 1 {
        for at in row * size + 1..(row + 1) * size - 1 {
            let around = from[at - 1] + from[at + 1] + from[at - size] + from[at + size];
            to[at] = from[at] + 0.1 * (around - 4.0 * from[at]);
        }
    }
}

fn spark(state: &mut State, cells: &mut [f64]) {
    state.seed = state.seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    let at = (state.seed >> 33) as usize % cells.len();
    cells[at] += 100.0 + (state.seed >> 60) as f64;
}

fn checksum(cells: &[f64]) -> u64 {
    cells.iter().fold(0xcbf2_9ce4_8422_2325, |sum, cell| (sum ^ cell.to_bits()).wrapping_mul(0x100_0000_01b3))
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let store = args.first().ok_or("usage: heat STORE [STEPS [SIZE [STEPS-BETWEEN-SNAPSHOTS]]]")?;
    let number = |at: usize, usual: usize| args.get(at).map_or(Ok(usual), |text| text.parse());
    let (steps, size, between) = (number(1, 2000)? as u64, number(2, 512)?.max(3), number(3, 100)?.max(1) as u64);

    let session = Session::builder("heat").store(store).keep(3).exit_on("TERM").open()?;
    let mut grid = session.alloc::<f64>("grid", 2 * size * size)?;
    let mut state = session.state()?.unwrap_or(State { step: 0, seed: 1 });
    match session.resumed() {
        Some(snapshot) => println!("goes on from {} at step {}", snapshot.frame(), state.step),
        None => println!("starts at step 0"),
    }

    let (mut taken, mut held_up, mut last, begun) = (0, Duration::ZERO, None, Instant::now());
    while state.step < steps {
        let (even, odd) = grid.split_at_mut(size * size);
        let (from, to) = if state.step % 2 == 0 { (even, odd) } else { (odd, even) };
        if state.step % 64 == 0 {
            spark(&mut state, from);
        }
        step(from, to, size);
        state.step += 1;
        if state.step % between == 0 || session.due() {
            match session.snapshot(&state) {
                Ok(ticket) => (taken, held_up, last) = (taken + 1, held_up + Duration::from_nanos(ticket.info().pause_ns), Some(ticket)),
                // The one before is still being written: the next time, then.
                Err(e) if e.kind() == Kind::Busy => {}
                Err(e) => return Err(e.into()),
            }
        }
        if session.should_exit() {
            break;
        }
    }
    println!("{taken} snapshots held it up for {:.1} ms in {:.1} s", held_up.as_secs_f64() * 1e3, begun.elapsed().as_secs_f64());
    if state.step < steps {
        const LONG: Duration = Duration::from_secs(600);
        // One that is still being written comes first; should it fail, there is still this one.
        let _ = last.map(|ticket| ticket.wait(Level::Stored, LONG));
        session.snapshot(&state)?.wait(Level::Stored, LONG)?;
        println!("asked to exit at step {}", state.step);
        return Ok(());
    }
    println!("step {} checksum {:016x}", state.step, checksum(&grid));
    Ok(())
}
