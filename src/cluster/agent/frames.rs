//! Frames of a running service: taken on schedule, and committed only as long as the service is ours.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::hand::{json, Hand, Running};
use super::News;
use crate::checkpoint::{checkpoint, Options, Report, Then};
use crate::cluster::config::Service as Spec;
use crate::cluster::state::{Change, Revision};
use crate::cluster::view::Frame;
use crate::error::{Error, Result};
use crate::proc::{self, Pid};
use crate::resource::fd::CaptureOptions;
use crate::store::{DirStore, FrameRef, Store};

/// How a frame of a process tree is taken.
pub trait Framer: Send + Sync {
    /// Takes one into `store`; returns when it is on stable storage.
    fn frame(&self, pid: Pid, store: &DirStore, options: &Options) -> Result<Report>;
}

/// Every frame stands for itself.
pub struct Whole;

impl Framer for Whole {
    fn frame(&self, pid: Pid, store: &DirStore, options: &Options) -> Result<Report> {
        checkpoint(pid, store, options)
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

/// Takes a frame and commits it; the caller holds `taking`.
pub fn take(hand: &Hand, spec: &Spec, running: &Running, then: Then) -> Result<()> {
    let store = DirStore::new(hand.frames());
    let clients = clients(spec, running.pid);
    let options = Options {
        name: Some(name(&spec.name, running.token)),
        then,
        descriptors: CaptureOptions { tcp_close: true, ..CaptureOptions::default() },
        ..Options::default()
    };
    let report = hand.framer.frame(running.pid, &store, &options)?;
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

/// Keeps the newest frames of the service, whoever took them.
fn sweep(store: &DirStore, spec: &Spec, token: Revision) {
    let mut own: Vec<(Revision, FrameRef)> = Vec::new();
    for frame in store.list(None).unwrap_or_default() {
        let of = frame.name().rsplit_once('.').filter(|(name, _)| *name == spec.name).and_then(|(_, token)| token.parse().ok());
        // A higher token is somebody else's business.
        own.extend(of.filter(|&of: &Revision| of <= token).map(|of| (of, frame)));
    }
    own.sort();
    let surplus = own.len().saturating_sub(spec.keep as usize);
    let kept: BTreeSet<Revision> = own[surplus..].iter().map(|(of, _)| *of).collect();
    for (of, frame) in &own[..surplus] {
        // What cannot be removed now is tried again after the next frame.
        let _ = store.remove(frame);
        if !kept.contains(of) && *of < token {
            let _ = fs::remove_dir_all(store.root().join(frame.name()));
        }
    }
}

/// Takes frames of an instance on schedule, the first one at once.
pub fn start(hand: &Arc<Hand>, spec: &Spec, running: &Running) {
    let Some(every) = spec.every else { return };
    let (hand, spec, running) = (hand.clone(), spec.clone(), running.clone());
    std::thread::spawn(move || {
        let mut said = String::new();
        while !running.over.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let taken = {
                let _taking = running.taking.lock().unwrap_or_else(|e| e.into_inner());
                if running.over.load(Ordering::Relaxed) { Ok(()) } else { take(&hand, &spec, &running, Then::Run) }
            };
            if let Err(e) = taken.map_err(|e| e.to_string()) {
                if e != said && !running.over.load(Ordering::Relaxed) {
                    hand.say(&spec.name, &format!("no frame this time: {e}"));
                    said = e;
                }
            }
            let due = begun + every.0;
            while !running.over.load(Ordering::Relaxed) && Instant::now() < due {
                std::thread::sleep((due - Instant::now().min(due)).min(Duration::from_millis(50)));
            }
        }
    });
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
