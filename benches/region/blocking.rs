//! For how long `snapshot` blocks, when it is complete, and what it stores.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use stillframe::region::{bytemuck, Compression, Info, Level, Method, Region, Resume, Session};
use stillframe::sys::clone;

use super::{fill, median, millis, name, Missed, Outcome, LONG, METHODS, MIB, PAGE, SHARES};

/// Of each kind; more of what is over in no time, which a busy moment of the machine would spoil.
const ROUNDS: usize = 5;
const SHORT_ROUNDS: usize = 25;
/// What the first snapshot may block, in milliseconds for a GiB.
const FIRST: f64 = 16.0;
/// What a later one may block besides the copy of what was written, in milliseconds for a GiB.
const LATER: f64 = 1.5;

/// Writes to `share` percent of the pages, spread over all.
fn touch(numbers: &mut [u64], share: usize, value: u64) {
    numbers.chunks_mut(PAGE * 100 / share).for_each(|pages| pages[0] = value);
}

/// Milliseconds that it takes to copy the pages that `touch` writes into memory that is there already, as a program would. They
/// come from memory, as after a pass over all of it, and not from a cache.
fn copying(numbers: &[u64], share: usize, room: &mut [u64]) -> f64 {
    let once = |room: &mut [u64]| {
        std::hint::black_box(numbers.iter().fold(0u64, |sum, number| sum.wrapping_add(*number)));
        let begun = Instant::now();
        for (pages, to) in numbers.chunks(PAGE * 100 / share).zip(room.chunks_mut(PAGE)) {
            let page = &pages[..PAGE.min(pages.len())];
            to[..page.len()].copy_from_slice(page);
        }
        millis(begun.elapsed())
    };
    median((0..ROUNDS).map(|_| once(room)).collect())
}

fn write(path: &Path, numbers: &[u64]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytemuck::cast_slice(numbers))?;
    file.sync_all()
}

/// One row of the table.
fn row(method: &str, share: &str, blocks: f64, bar: &str, complete: f64, mib: f64, note: &str) {
    println!("{method:<20} {share:>6} {blocks:>10.2} {bar:>12} {complete:>12.0} {mib:>11.1}  {note}");
}

/// What programs do that have no library.
fn plain(dir: &Path, numbers: &mut [u64]) -> Outcome<()> {
    let mib = (numbers.len() * 8) as f64 / MIB;
    let path = dir.join("plain");
    let begun = Instant::now();
    write(&path, numbers)?;
    let took = millis(begun.elapsed());
    row("synchronous write", "-", took, "-", took, mib, "");
    let begun = Instant::now();
    let child = clone::child(0, || i32::from(write(&path, numbers).is_err()))?;
    let blocks = millis(begun.elapsed());
    touch(numbers, 10, 1);
    waitpid(Pid::from_raw(child), None)?;
    row("fork, child writes", "-", blocks, "-", millis(begun.elapsed()), mib, "");
    std::fs::remove_file(path)?;
    Ok(())
}

pub fn session(store: &Path, method: Method) -> Outcome<Session> {
    Ok(Session::builder("bench").store(store).method(method).resume(Resume::Fresh).keep(2).compression(Compression::None).open()?)
}

pub fn snapshot(session: &Session) -> Outcome<Info> {
    Ok(session.snapshot(&())?.wait(Level::Stored, LONG)?)
}

fn costs(store: &Path, method: Method, count: usize, copies: &[f64], missed: &mut Missed) -> Outcome<()> {
    let gib = (count * 8) as f64 / MIB / 1024.0;
    let session = session(store, method)?;
    let mut region: Region<u64> = session.alloc("numbers", count)?;
    fill(&mut region);
    let mib = |info: &Info| info.file_bytes as f64 / MIB;
    let first = snapshot(&session)?;
    let blocks = first.pause_ns as f64 / 1e6;
    row(name(method), "first", blocks, &missed.hold(blocks, FIRST * gib), first.stored_ns as f64 / 1e6, mib(&first), &format!("{}: {}", first.method, first.why));
    for (share, copy) in SHARES.into_iter().zip(copies) {
        let mut infos = Vec::new();
        // The first round is not yet what goes on for hours.
        let rounds = if share < 10 { SHORT_ROUNDS } else { ROUNDS };
        for round in 0..=rounds {
            touch(&mut region, share, round as u64);
            infos.push(snapshot(&session)?);
        }
        let of = |value: fn(&Info) -> u64| median(infos[1..].iter().map(|info| value(info) as f64 / 1e6).collect());
        let (last, blocks) = (&infos[rounds], of(|info| info.pause_ns));
        // The other methods do not track what was written.
        let bar = if method == Method::Auto { missed.hold(blocks, LATER * gib + copy) } else { missed.hold(blocks, FIRST * gib) };
        row(name(method), &format!("{share} %"), blocks, &bar, of(|info| info.stored_ns), mib(last), &format!("{}: {}", last.method, last.why));
    }
    Ok(())
}

pub fn compare(dir: &Path, store: &Path, count: usize, missed: &mut Missed) -> Outcome<()> {
    println!("{:<20} {:>6} {:>10} {:>12} {:>12} {:>11}", "method", "dirty", "blocks ms", "bar", "complete ms", "stored MiB");
    let (mut numbers, mut room) = (vec![0u64; count], vec![1u64; count]);
    fill(&mut numbers);
    plain(dir, &mut numbers)?;
    let copies = SHARES.map(|share| copying(&numbers, share, &mut room));
    SHARES.iter().zip(&copies).for_each(|(share, copy)| println!("{:<20} {:>4} % {copy:>10.2}", "copy of such pages", share));
    drop((numbers, room));
    METHODS.into_iter().try_for_each(|method| costs(store, method, count, &copies, missed))
}
