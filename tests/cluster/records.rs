//! A client that writes numbered records to the service, comes back after every fault, and goes on behind what it finds there.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::checker::Commit;
use super::field::{eventually, now_ms, ADDRESS, PORT};

#[derive(Debug, Clone, Copy)]
enum Event {
    /// This many records were there after one more.
    Wrote { at_ms: u64, count: i64 },
    /// This many were found after connecting anew.
    Found { count: i64 },
}

pub struct Writer {
    events: Arc<Mutex<Vec<Event>>>,
    over: Arc<AtomicBool>,
}

impl Writer {
    pub fn start() -> Writer {
        let writer = Writer { events: Arc::default(), over: Arc::default() };
        let (events, over) = (writer.events.clone(), writer.over.clone());
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                // Whatever it is, it comes back.
                let _ = write(&events, &over);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        writer
    }

    /// Waits until it has come back after `known` times and written again; how often it has come back.
    pub fn another(&self, known: usize) -> usize {
        eventually("records are written again", || {
            let events = self.events.lock().unwrap();
            let found = events.iter().filter(|event| matches!(event, Event::Found { .. })).count();
            (found > known && matches!(events.last(), Some(Event::Wrote { .. }))).then_some(found)
        })
    }

    /// All records are in order, and none was lost that a committed frame holds.
    pub fn judge(&self, commits: &[Commit]) {
        let events = self.events.lock().unwrap();
        let mut wrote: Vec<(u64, i64)> = Vec::new();
        for event in events.iter() {
            match *event {
                Event::Wrote { at_ms, count } => wrote.push((at_ms, count)),
                Event::Found { count } => {
                    assert!(count >= 0, "records are out of order");
                    let Some(&(last_ms, last)) = wrote.last() else { continue };
                    assert!(count <= last + 1, "{count} records were found, and {last} written");
                    // A frame begins after the one before it was committed, and a commit may be heard of late.
                    let committed: Vec<&Commit> = commits.iter().filter(|commit| commit.at_ms <= last_ms).collect();
                    let safe = committed.len().checked_sub(3).and_then(|at| wrote.iter().rev().find(|(at_ms, _)| *at_ms < committed[at].at_ms));
                    assert!(safe.is_none_or(|(_, safe)| *safe <= count), "{count} records were found, but {safe:?} were written before a committed frame was begun");
                    // What came after the frame is written again.
                    wrote.retain(|(_, older)| *older <= count);
                }
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn write(events: &Mutex<Vec<Event>>, over: &AtomicBool) -> std::io::Result<()> {
    let address: SocketAddr = format!("{ADDRESS}:{PORT}").parse().unwrap();
    let stream = TcpStream::connect_timeout(&address, Duration::from_millis(500))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut count = ask(&stream, "l")?;
    events.lock().unwrap().push(Event::Found { count });
    while !over.load(Ordering::Relaxed) {
        count = ask(&stream, &format!("r{}", count + 1))?;
        events.lock().unwrap().push(Event::Wrote { at_ms: now_ms(), count });
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn ask(mut stream: &TcpStream, word: &str) -> std::io::Result<i64> {
    stream.write_all(word.as_bytes())?;
    let mut answer = [0; 32];
    let length = stream.read(&mut answer)?;
    String::from_utf8_lossy(&answer[..length]).trim().parse().map_err(std::io::Error::other)
}
