//! Probes of a service, made in its own network.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{setns, CloneFlags};

use super::hand::{Hand, Running};
use super::News;
use crate::cluster::config::{Monitor, Service as Spec};
use crate::error::{Context, Error, Kind, Result};
use crate::proc;

/// Why a probe failed, and whether there is any sense in asking again.
struct Failure {
    why: String,
    for_good: bool,
}

fn failure(why: impl ToString) -> Failure {
    Failure { why: why.to_string(), for_good: false }
}

/// Enters the instance's network with this thread, for good.
fn enter(running: &Running) -> Result<()> {
    let path = proc::path(running.init, "ns/net");
    let file = File::open(&path).at("open", &path)?;
    setns(file.as_fd(), CloneFlags::CLONE_NEWNET).at("enter", &path)
}

/// Waits until every probe has passed once, `patience` at most.
pub fn await_healthy(hand: &Hand, spec: &Spec, running: &Running, patience: Duration) -> Result<()> {
    if spec.monitor.is_empty() {
        return Ok(());
    }
    let end = Instant::now() + patience;
    let waited = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            enter(running)?;
            for monitor in &spec.monitor {
                while let Err(failure) = probe(monitor, spec) {
                    let gone = hand.running(&spec.name).is_none_or(|current| current.id != running.id);
                    if gone || Instant::now() > end {
                        return Err(Error::new(Kind::Refused, format!("its probes do not pass: {}", failure.why)));
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            Ok(())
        });
        waiting.join()
    });
    waited.unwrap_or_else(|_| Err(Error::new(Kind::Refused, "a probe panicked")))
}

/// Probes from now on, until the instance is over.
pub fn start(hand: &Arc<Hand>, spec: &Spec, running: &Running) {
    for monitor in spec.monitor.clone() {
        let (hand, spec, running) = (hand.clone(), spec.clone(), running.clone());
        std::thread::spawn(move || {
            if enter(&running).is_ok() {
                watch(&hand, &spec, &monitor, &running);
            }
        });
    }
}

fn watch(hand: &Hand, spec: &Spec, monitor: &Monitor, running: &Running) {
    let mut failures = 0;
    while !running.over.load(Ordering::Relaxed) {
        let due = Instant::now() + monitor.every.0;
        let failed = {
            // A probe of a service that a frame holds still would fail for no reason.
            let outcome = probe(monitor, spec);
            outcome.err()
        };
        failures = if failed.is_some() { failures + 1 } else { 0 };
        if let Some(failure) = failed.filter(|failure| failure.for_good || failures >= monitor.failures) {
            let _ = hand.news.send(News::Unwell { service: spec.name.clone(), token: running.token, why: failure.why });
            return;
        }
        while !running.over.load(Ordering::Relaxed) && Instant::now() < due {
            std::thread::sleep((due - Instant::now().min(due)).min(Duration::from_millis(50)));
        }
    }
}

fn probe(monitor: &Monitor, spec: &Spec) -> std::result::Result<(), Failure> {
    let ip = spec.address.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip);
    match monitor {
        Monitor { tcp: Some(port), .. } => connect(SocketAddr::new(ip, *port), monitor.timeout.0).map(drop),
        Monitor { http: Some(http), .. } => {
            let (port, path) = http.split_once('/').unwrap_or((http, ""));
            get(SocketAddr::new(ip, port.parse().unwrap_or(80)), path, monitor.timeout.0)
        }
        Monitor { script: Some(script), .. } => run(script, &spec.name, monitor.timeout.0),
        _ => Ok(()),
    }
}

fn connect(address: SocketAddr, timeout: Duration) -> std::result::Result<TcpStream, Failure> {
    TcpStream::connect_timeout(&address, timeout).map_err(|e| failure(format!("cannot connect to {address}: {e}")))
}

fn get(address: SocketAddr, path: &str, timeout: Duration) -> std::result::Result<(), Failure> {
    let mut stream = connect(address, timeout)?;
    let bad = |e: std::io::Error| failure(format!("http://{address}/{path}: {e}"));
    stream.set_read_timeout(Some(timeout)).map_err(bad)?;
    write!(stream, "GET /{path} HTTP/1.0\r\nHost: {address}\r\n\r\n").map_err(bad)?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).map_err(bad)?;
    match head[9] {
        b'2' | b'3' => Ok(()),
        _ => Err(failure(format!("http://{address}/{path} answers {}", String::from_utf8_lossy(&head[9..])))),
    }
}

/// OCF's "not running": no doubt is left.
const NOT_RUNNING: i32 = 7;

fn run(script: &str, service: &str, timeout: Duration) -> std::result::Result<(), Failure> {
    let mut command = Command::new("sh");
    command.args(["-c", script]).env("STILLFRAME_SERVICE", service).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.spawn().map_err(|e| failure(format!("cannot start a shell for a probe: {e}")))?;
    let end = Instant::now() + timeout;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(Failure { why: format!("the probe {script:?}: {status}"), for_good: status.code() == Some(NOT_RUNNING) }),
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            _ => {
                // It may have ended just now.
                let _ = child.kill();
                let _ = child.wait();
                return Err(failure(format!("the probe {script:?} takes longer than {timeout:?}")));
            }
        }
    }
}
