//! A program that takes a frame of itself, and of which a second instance goes on from there: `checkpoint_self` returns twice.
//!
//! It needs root, and the `stillframe` command (`STILLFRAME_COMMAND`, or in `PATH`). The first instance takes the frame, brings
//! the second one back in namespaces of its own, and waits for what that has to say.

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use stillframe::inside::{checkpoint_self, restore, Callbacks, Options, Outcome};

fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let word = dir.path().join("word");
    // Threads, memory and all else come back as they are.
    let numbers: Vec<u64> = (0..100_000).map(|n| n * n).collect();
    let counter = std::thread::spawn(|| (0..200u64).inspect(|_| std::thread::sleep(Duration::from_millis(5))).sum::<u64>());

    // Whoever started us may have left pipes open that lead to other programs.
    let arguments = ["--external", "close"].map(str::to_owned).to_vec();
    let options = Options { store: Some(dir.path().join("store")), name: Some("self".to_owned()), arguments };
    let mut callbacks = Callbacks { before: Some(Box::new(|| { println!("about to be framed"); Ok(()) })), ..Callbacks::default() };
    match checkpoint_self(&options, &mut callbacks)? {
        Outcome::Saved(saved) => {
            println!("first instance: {} is safe, {} process, stood still for {:.1} ms", saved.frame, saved.processes, saved.pause_ns as f64 / 1e6);
            let apart = Options { arguments: vec!["--isolate".to_owned()], ..options };
            let pid = restore(&saved.frame, &apart, &mut Callbacks::default())?;
            println!("first instance: brought back a second one, process {pid}");
            println!("second instance: {}", heard(&word)?);
        }
        Outcome::Restored(_) => {
            let sum = counter.join().map_err(|_| "the thread is lost")?;
            let right = numbers.iter().zip(0u64..).all(|(number, n)| *number == n * n);
            std::fs::write(dir.path().join("new"), format!("its numbers are {}, its thread counted to {sum}", if right { "right" } else { "wrong" }))?;
            std::fs::rename(dir.path().join("new"), &word)?;
            // The directory is the first instance's.
            std::mem::forget(dir);
        }
        _ => return Err("a newer library has more to say".into()),
    }
    Ok(())
}

fn heard(word: &Path) -> Result<String, Box<dyn Error>> {
    let give_up = Instant::now() + Duration::from_secs(60);
    loop {
        match std::fs::read_to_string(word) {
            Ok(text) => return Ok(text),
            Err(_) if Instant::now() < give_up => std::thread::sleep(Duration::from_millis(10)),
            Err(e) => return Err(e.into()),
        }
    }
}
