//! Frames of a running service: taken on schedule, and committed only as long as the service is ours.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::hand::{json, Hand, Running};
use super::{tell, News};
use crate::checkpoint::{Options, Report, Session, Then};
use crate::cluster::config::Service as Spec;
use crate::cluster::state::{Change, Revision};
use crate::cluster::view::Frame;
use crate::error::{Error, Result};
use crate::proc::{self, maps, Pid};
use crate::resource::fd::CaptureOptions;
use crate::store::{DirStore, Store};
use crate::sys::pagemap::{self, category, Query};

/// The frames of one instance. The watch over its memory stays from one to the next, so that most hold only what was written since.
#[derive(Debug, Default)]
pub struct Series {
    session: Option<Session>,
    since_full: u32,
}

impl Series {
    fn frame(&mut self, pid: Pid, store: &DirStore, options: Options, full_every: u32) -> Result<Report> {
        let then = options.then;
        let session = match &mut self.session {
            Some(session) => session,
            none => none.insert(Session::new(pid, options)?),
        };
        session.then(then);
        let report = session.frame(store, self.since_full > 0 && self.since_full < full_every)?;
        self.since_full = if report.parent.is_some() { self.since_full + 1 } else { 1 };
        Ok(report)
    }
}

/// Frames of an owner have its token in their name: a stale owner's late frame is nobody's newest.
fn name(service: &str, token: Revision) -> String {
    format!("{service}.{token}")
}

/// The frames to come back from: the newest committed one, then older ones in case that it is damaged.
pub fn paths(hand: &Hand, service: &str, committed: Option<&Frame>) -> Result<Vec<PathBuf>> {
    let Some(committed) = committed else { return Ok(Vec::new()) };
    let store = DirStore::new(hand.frames());
    let newest = (committed.token, committed.seq);
    let mut found: Vec<(Revision, u64, PathBuf)> = Vec::new();
    for frame in store.list(None)? {
        let token = frame.name().rsplit_once('.').filter(|(name, _)| *name == service).and_then(|(_, token)| token.parse().ok());
        found.extend(token.filter(|&token| (token, frame.seq()) <= newest).map(|token| (token, frame.seq(), store.path(&frame))));
    }
    found.sort();
    if found.last().is_none_or(|(token, seq, _)| (*token, *seq) != newest) {
        let name = name(service, committed.token);
        return Err(Error::new(crate::error::Kind::NotFound, format!("the committed frame {name}@{} of {service} is not in {}; is the storage mounted?", committed.seq, hand.frames().display())));
    }
    Ok(found.into_iter().rev().map(|(_, _, path)| path).collect())
}

/// Takes a frame and commits it.
pub fn take(hand: &Hand, spec: &Spec, running: &Running, series: &mut Series, then: Then) -> Result<()> {
    let store = DirStore::new(hand.frames());
    let clients = clients(spec, running.pid);
    let options = Options {
        name: Some(name(&spec.name, running.token)),
        then,
        descriptors: CaptureOptions { tcp_close: true, ..CaptureOptions::default() },
        ..Options::default()
    };
    let report = series.frame(running.pid, &store, options, spec.full_every)?;
    let frame = Frame { token: running.token, seq: report.frame.seq(), taken_ns: now_ns(), node: hand.node.name.clone(), features: hand.features.clone(), clients };
    let change = Change::put(hand.keys.at("frame", &spec.name), json(&frame));
    if !hand.commit(&[hand.owned(&spec.name, running.token)], &[change])? {
        // Nobody may take it for the newest.
        let _ = store.remove(&report.frame);
        return Err(Error::refused(format!("frame {} came too late: this node does not own {} any more", report.frame, spec.name)));
    }
    hand.counts.frames.fetch_add(1, Ordering::Relaxed);
    hand.counts.pause_us.store(report.pause_ns / 1000, Ordering::Relaxed);
    let _ = hand.news.send(News::Framed { service: spec.name.clone() });
    sweep(&store, spec, running.token);
    Ok(())
}

fn now_ns() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64)
}

/// Keeps the newest frames of the service and what they build upon, whoever took them.
fn sweep(store: &DirStore, spec: &Spec, token: Revision) {
    let own = name(&spec.name, token);
    // What cannot be removed now is tried again after the next frame.
    let _ = store.retain(&own, spec.keep as usize);
    let enough = store.list(Some(&own)).is_ok_and(|frames| frames.len() >= spec.keep as usize);
    for frame in store.list(None).unwrap_or_default().iter().filter(|_| enough).rev() {
        let of = frame.name().rsplit_once('.').filter(|(name, _)| *name == spec.name).and_then(|(_, token)| token.parse::<Revision>().ok());
        // A higher token is somebody else's business.
        if of.is_some_and(|of| of < token) {
            let _ = store.remove(frame);
            // Only the last one leaves an empty directory behind.
            let _ = store.list(Some(frame.name())).is_ok_and(|left| left.is_empty()).then(|| fs::remove_dir_all(store.root().join(frame.name())));
        }
    }
}

/// How often it is looked how much was written.
const LOOK: Duration = Duration::from_millis(50);
/// So many failures in a row are worth an alert.
const ALARMING: u32 = 3;

/// Takes frames of an instance on schedule, the first one at once.
pub fn start(hand: &Arc<Hand>, spec: &Spec, running: &Running) {
    if spec.every.is_none() && spec.every_written.is_none() {
        return;
    }
    let (hand, spec, running) = (hand.clone(), spec.clone(), running.clone());
    std::thread::spawn(move || {
        let mut failures = 0;
        while !running.over.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let taken = {
                let mut series = running.series.lock().unwrap_or_else(|e| e.into_inner());
                if running.over.load(Ordering::Relaxed) { Ok(()) } else { take(&hand, &spec, &running, &mut series, Then::Run) }
            };
            failures = if taken.is_ok() { 0 } else { failures + 1 };
            match taken {
                Err(e) if running.over.load(Ordering::Relaxed) => drop(e),
                Err(e) if failures == ALARMING => tell::alert(&hand, "no-frames", &spec.name, &format!("{ALARMING} frames of {} failed in a row: {e}", spec.name)),
                Err(e) if failures < ALARMING => hand.say(&spec.name, &format!("no frame this time: {e}")),
                _ => {}
            }
            pause(&spec, &running, begun);
        }
    });
}

/// Until the next frame is due: by the time since the last one was begun, or by what was written since.
fn pause(spec: &Spec, running: &Running, begun: Instant) {
    // Where a frame by size alone failed, it is not tried again at once.
    let least = Instant::now() + LOOK;
    while !running.over.load(Ordering::Relaxed) {
        let left = spec.every.map(|every| (begun + every.0).saturating_duration_since(Instant::now()));
        let much = || spec.every_written.is_some_and(|most| written(running.pid) >= most.0) && Instant::now() >= least;
        if left.is_some_and(|left| left.is_zero()) || much() {
            return;
        }
        std::thread::sleep(left.unwrap_or(LOOK).min(LOOK));
    }
}

/// Bytes of private memory that a tree has written since its last frame, as far as its pages are watched.
fn written(root: Pid) -> u64 {
    const QUERY: Query = Query { all_of: category::WRITTEN, none_of: category::FILE, any_of: category::PRESENT | category::SWAPPED, report: category::WRITTEN, protect: false, registered: true };
    let of_process = |pid: Pid| {
        let (Ok(pagemap), Ok(mappings)) = (fs::File::open(proc::path(pid, "pagemap")), maps::read(&proc::path(pid, "maps"))) else { return 0 };
        // What is not watched tells nothing.
        let found = mappings.iter().filter(|vma| !vma.shared).filter_map(|vma| pagemap::find(&pagemap, vma.start, vma.end, QUERY).ok());
        found.flatten().map(|region| region.end - region.start).sum::<u64>()
    };
    tree(root).into_iter().map(of_process).sum()
}

/// A process and all its descendants.
pub fn tree(root: Pid) -> Vec<Pid> {
    let mut all = vec![root];
    let mut at = 0;
    while at < all.len() {
        all.extend(proc::children(all[at]).unwrap_or_default());
        at += 1;
    }
    all
}

/// Clients connected to the service's address: (its end, the client's end).
fn clients(spec: &Spec, pid: Pid) -> Vec<(SocketAddr, SocketAddr)> {
    const MOST: usize = 1000;
    let Some(address) = spec.address else { return Vec::new() };
    let table = fs::read_to_string(proc::path(pid, "net/tcp")).unwrap_or_default();
    table.lines().skip(1).filter_map(established).filter(|(own, _)| own.ip() == address.ip).take(MOST).collect()
}

/// Both ends of a line of /proc/PID/net/tcp, if its connection is established.
fn established(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let end = |word: &str| {
        let (ip, port) = word.split_once(':')?;
        // The address is printed as a number of this machine's byte order.
        let ip = Ipv4Addr::from(u32::from_str_radix(ip, 16).ok()?.to_ne_bytes());
        Some(SocketAddr::new(IpAddr::V4(ip), u16::from_str_radix(port, 16).ok()?))
    };
    (*words.get(3)? == "01").then(|| Some((end(words[1])?, end(words[2])?)))?
}

#[cfg(test)]
mod tests {
    #[test]
    fn established_connections_are_read() {
        let line = "   1: 0100007F:1F90 0200000A:C350 01 00000000:00000000 00:00000000 00000000     0        0 12345 1";
        assert_eq!(super::established(line).map(|(own, client)| (own.to_string(), client.to_string())), Some(("127.0.0.1:8080".into(), "10.0.0.2:50000".into())));
        assert_eq!(super::established(&line.replace(" 01 ", " 0A ")), None);
    }
}
