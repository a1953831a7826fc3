//! Clients of redis: one that asks all the time, one that only listens.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::time::{clock_gettime, ClockId};

use crate::kit::field::{ADDRESS, PORT};

/// The boot-time clock in milliseconds, which agents print as well.
pub fn now() -> f64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("every Linux has this clock");
    now.tv_sec() as f64 * 1e3 + now.tv_nsec() as f64 / 1e6
}

fn connect(patience: Duration) -> Result<TcpStream> {
    let address: SocketAddr = format!("{ADDRESS}:{PORT}").parse().map_err(Error::other)?;
    let stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    Ok(stream)
}

/// Sends a command; its answer's first line.
fn ask(stream: &TcpStream, command: &[u8]) -> Result<String> {
    (&*stream).write_all(command)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    match line.ends_with('\n') && !line.starts_with('-') {
        true => Ok(line.trim().to_owned()),
        false => Err(Error::new(ErrorKind::UnexpectedEof, line)),
    }
}

/// Keys in the database.
pub fn count() -> Result<usize> {
    let answer = ask(&connect(Duration::from_secs(10))?, b"DBSIZE\r\n")?;
    answer.trim_start_matches(':').parse().map_err(Error::other)
}

/// Fills it with `keys` values of 1 KiB, of which half compresses well.
pub fn fill(keys: usize) -> Result<()> {
    const BATCH: usize = 256;
    let stream = connect(Duration::from_secs(30))?;
    let mut seed = 1u64;
    for first in (0..keys).step_by(BATCH) {
        let batch = first..(first + BATCH).min(keys);
        let mut command = format!("*{}\r\n$4\r\nMSET\r\n", batch.len() * 2 + 1).into_bytes();
        for key in batch {
            let mut value = vec![b'x'; 1024];
            for word in value[..512].chunks_mut(8) {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                word.copy_from_slice(&(seed >> 8).to_ne_bytes());
            }
            let name = format!("key:{key}");
            command.extend(format!("${}\r\n{name}\r\n$1024\r\n", name.len()).bytes());
            command.extend(value);
            command.extend(b"\r\n");
        }
        ask(&stream, &command)?;
    }
    Ok(())
}

/// What the busy client saw of a fault.
pub struct Stall {
    /// The last answer before.
    pub last: f64,
    /// The first answer after.
    pub first: f64,
    /// The first refusal or reset in between.
    pub error: Option<f64>,
}

#[derive(Default)]
struct Seen {
    answers: Vec<f64>,
    errors: Vec<f64>,
}

/// A client that asks every millisecond and comes back after every error.
pub struct Prober {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

impl Prober {
    pub fn start() -> Prober {
        let over = Arc::new(AtomicBool::new(false));
        let end = over.clone();
        Prober { over, thread: std::thread::spawn(move || probe(&end)) }
    }

    /// Waits for answers after a stall that began at `since` or later, and ends; what it saw.
    pub fn stall(self, since: f64) -> Stall {
        while now() < since + 60_000.0 && count().is_err() {
            std::thread::sleep(Duration::from_millis(50));
        }
        // Time for its own next answer.
        std::thread::sleep(Duration::from_millis(500));
        self.over.store(true, Ordering::Relaxed);
        let seen = self.thread.join().expect("the client does not panic");
        let gaps = seen.answers.windows(2).map(|pair| (pair[0], pair[1])).filter(|(_, first)| *first > since);
        let (last, first) = gaps.max_by(|a, b| (a.1 - a.0).total_cmp(&(b.1 - b.0))).expect("answers after the fault");
        Stall { last, first, error: seen.errors.into_iter().find(|&at| at > last) }
    }
}

fn probe(over: &AtomicBool) -> Seen {
    let (mut seen, mut stream) = (Seen::default(), None);
    while !over.load(Ordering::Relaxed) {
        let asked = match stream.take() {
            Some(stream) => Ok(stream),
            None => connect(Duration::from_millis(20)),
        };
        match asked.and_then(|stream| ask(&stream, b"STRLEN key:7\r\n").map(|_| stream)) {
            Ok(again) => {
                seen.answers.push(now());
                stream = Some(again);
            }
            Err(e) if matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset) => seen.errors.push(now()),
            Err(_) => {}
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    seen
}

/// A client that is connected and says nothing.
pub struct Idle(JoinHandle<Option<f64>>);

impl Idle {
    pub fn start() -> Idle {
        let stream = connect(Duration::from_secs(30));
        Idle(std::thread::spawn(move || match stream.ok()?.read(&mut [0; 8]) {
            Err(e) if e.kind() == ErrorKind::ConnectionReset => Some(now()),
            _ => None,
        }))
    }

    /// When it was reset; none: it was not.
    pub fn error(self) -> Option<f64> {
        self.0.join().ok()?
    }
}
