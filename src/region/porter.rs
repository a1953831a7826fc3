//! Requests from outside: a socket at which `stillframe checkpoint --name` asks for a snapshot.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::session::silent_thread;
use super::ticket::Info;
use crate::error::{Context, Error, Result};
use crate::image::FrameId;
use crate::request::{self, Answer, Stored, SNAPSHOT, SNAPSHOT_AND_EXIT};

/// Who waits for the next snapshot, and whether the program is to exit.
#[derive(Debug, Default)]
pub(super) struct Requests {
    waiting: Mutex<Vec<UnixStream>>,
    exit: AtomicBool,
    closed: AtomicBool,
}

impl Requests {
    fn waiting(&self) -> MutexGuard<'_, Vec<UnixStream>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn any(&self) -> bool {
        !self.waiting().is_empty()
    }

    pub fn exit(&self) -> bool {
        self.exit.load(Ordering::Relaxed)
    }

    /// Those who asked before the snapshot that is being taken.
    pub fn take(&self) -> Vec<UnixStream> {
        std::mem::take(&mut self.waiting())
    }
}

/// Tells who waits how it ended.
pub(super) fn answer(waiting: Vec<UnixStream>, outcome: Result<Info, &Error>) {
    if waiting.is_empty() {
        return;
    }
    let answer = match outcome {
        Ok(info) => Answer::Stored(Stored {
            frame: info.frame.map(|frame| frame.to_string()).unwrap_or_default(),
            method: info.method.to_owned(),
            pause_ns: info.pause_ns,
            durable_ns: info.stored_ns,
            region_bytes: info.bytes,
            bytes: info.file_bytes,
        }),
        Err(e) => Answer::Failed(e.to_string()),
    };
    let line = serde_json::to_string(&answer).unwrap_or_default() + "\n";
    for mut stream in waiting {
        // Who does not listen any more need not know.
        let _ = stream.write_all(line.as_bytes());
    }
}

/// The thread at the socket; it ends with this value.
#[derive(Debug)]
pub(super) struct Porter {
    pub socket: String,
    requests: Arc<Requests>,
    thread: Option<JoinHandle<()>>,
}

impl Porter {
    pub fn new(requests: Arc<Requests>) -> Result<Porter> {
        let socket = format!("stillframe-{}", FrameId::generate());
        let listener = UnixListener::bind_addr(&request::address(&socket)?).context("cannot listen for requests")?;
        requests.closed.store(false, Ordering::Release);
        let heard = requests.clone();
        let thread = silent_thread("stillframe-door", move || serve(&listener, &heard))?;
        Ok(Porter { socket, requests, thread: Some(thread) })
    }
}

impl Drop for Porter {
    fn drop(&mut self) {
        self.requests.closed.store(true, Ordering::Release);
        // A last visitor wakes it.
        let woken = request::address(&self.socket).is_ok_and(|address| UnixStream::connect_addr(&address).is_ok());
        if let (true, Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &UnixListener, requests: &Requests) {
    loop {
        let visitor = listener.accept();
        if requests.closed.load(Ordering::Acquire) {
            return;
        }
        match visitor {
            Ok((stream, _)) => hear(stream, requests),
            // Out of descriptors, perhaps: that may pass.
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn hear(stream: UnixStream, requests: &Requests) {
    let ours = nix::unistd::geteuid().as_raw();
    let trusted = getsockopt(&stream, PeerCredentials).is_ok_and(|peer| peer.uid() == ours || peer.uid() == 0);
    // Nobody may hold up others by saying nothing.
    if !trusted || stream.set_read_timeout(Some(Duration::from_secs(2))).is_err() {
        return;
    }
    let mut line = String::new();
    if BufReader::new((&stream).take(100)).read_line(&mut line).is_err() {
        return;
    }
    match line.trim_end() {
        SNAPSHOT => {}
        SNAPSHOT_AND_EXIT => requests.exit.store(true, Ordering::Relaxed),
        _ => return,
    }
    requests.waiting().push(stream);
}
