//! `stillframe inspect`.

use std::collections::BTreeMap;

use serde_json::{json, Value};

use super::{json as line, regions, show, StoreArgs};
use crate::catalog;
use crate::error::{Error, Result};
use crate::image::{Chain, FrameReader};
use crate::manifest::{Body, Life, Manifest, Process};
use crate::proc::Pid;
use crate::resource::files::{FileEntry, FileKind};
use crate::resource::memory::{AddressSpace, Backing, Mapping};

/// Show what a frame holds: processes, memory, descriptors, files, what it builds upon, and where it was taken
#[derive(Debug, clap::Args)]
pub struct Args {
    /// NAME (the newest frame of that name), NAME@SEQ, or the path of a .frame file
    frame: String,
    #[command(flatten)]
    store: StoreArgs,
    /// Show every mapping
    #[arg(long)]
    maps: bool,
    /// Print the whole manifest and facts about the frame as one line of JSON
    #[arg(long, conflicts_with = "maps")]
    json: bool,
}

/// Shows.
pub fn run(args: &Args) -> Result<i32> {
    let located = args.store.open()?.resolve(&args.frame)?;
    if let Some(record) = catalog::record(&located.path)? {
        return regions::show(args.json, &located.path, &record);
    }
    let (chain, manifest) = catalog::open(&located.path)?;
    let frame = located.frame.map(|frame| frame.to_string());
    if args.json {
        println!("{}", line(&as_json(frame.as_deref(), &chain, &manifest)?)?);
    } else {
        print!("{}", text(frame.as_deref().unwrap_or(&args.frame), &chain, &manifest, args.maps)?);
    }
    Ok(0)
}

/// Bytes in blocks, before and after compression.
fn sizes(chain: &Chain) -> (u64, u64) {
    let sum = |length: fn(&crate::image::BlockEntry) -> u32| chain.newest().blocks().iter().map(|block| u64::from(length(block))).sum();
    (sum(|block| block.raw_len), sum(|block| block.stored_len))
}

fn ratio(raw: u64, stored: u64) -> f64 {
    if stored == 0 { 1.0 } else { raw as f64 / stored as f64 }
}

fn as_json(frame: Option<&str>, chain: &Chain, manifest: &Manifest) -> Result<Value> {
    let (raw, stored) = sizes(chain);
    let manifest = to_value(manifest)?;
    Ok(json!({
        "frame": frame,
        "path": chain.path(),
        "bytes": chain.newest().bytes(),
        "id": chain.header().id,
        "parent": chain.header().parent,
        "chain": chain.frames().iter().map(|frame| frame.path()).collect::<Vec<_>>(),
        "chain_bytes": chain.bytes(),
        "blocks": chain.newest().blocks().len(),
        "data_bytes": raw,
        "stored_bytes": stored,
        "compression_ratio": ratio(raw, stored),
        "arch": chain.header().arch_name(),
        "manifest": manifest,
    }))
}

fn to_value(value: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|e| Error::corrupt(format!("the frame's manifest cannot be shown: {e}")))
}

fn text(title: &str, chain: &Chain, manifest: &Manifest, maps: bool) -> Result<String> {
    let descriptors = to_value(&manifest.descriptors)?;
    let mut out = heading(title, chain, manifest);
    out += "\nprocesses\n";
    for process in &manifest.processes {
        out += &format!("  {}{}\n", "  ".repeat(depth(manifest, process)), headline(process));
    }
    for process in &manifest.processes {
        if let Some(body) = &process.body {
            out += &format!("\nprocess {} {}\n", process.node.pid, process.name);
            out += &memory(manifest, body, maps);
            out += &table_of_descriptors(manifest, body, &descriptors);
        }
    }
    out += &files(&manifest.files);
    Ok(out)
}

fn heading(title: &str, chain: &Chain, manifest: &Manifest) -> String {
    let (raw, stored) = sizes(chain);
    let (host, taking) = (&manifest.host, &manifest.taking);
    let rows = [
        ("frame", format!("{title} ({})", chain.path().display())),
        ("taken", format!("{} by {}, paused {}", ago(manifest.taken_ns), taking.method, show::millis(taking.pause_ns))),
        ("size", format!("{} in {}, compressed {:.2} : 1", show::bytes(chain.newest().bytes()), show::count(chain.newest().blocks().len(), "block", "blocks"), ratio(raw, stored))),
        ("kind", kind(chain)),
        ("pages", format!("{} ({} more are zero)", taking.pages, taking.zero_pages)),
        ("host", format!("{}, Linux {}", host.hostname, host.kernel)),
        ("cpu", format!("{} ({}): {}", host.cpu, chain.header().arch_name(), join(&host.cpu_features))),
    ];
    show::table(&rows.map(|(key, value)| vec![key.to_owned(), value]))
}

/// Whether the frame is full, and if not, what else belongs to it.
fn kind(chain: &Chain) -> String {
    let file = |frame: &FrameReader| frame.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    match chain.frames() {
        [_, parent, .., last] | [_, parent @ last] => format!(
            "increment upon {}; {} frames down to {}, {} in all",
            file(parent),
            chain.frames().len(),
            file(last),
            show::bytes(chain.bytes())
        ),
        _ => "full".to_owned(),
    }
}

fn ago(taken_ns: u64) -> String {
    match show::age(taken_ns).as_str() {
        "now" => "just now".to_owned(),
        age => format!("{age} ago"),
    }
}

fn join(words: &std::collections::BTreeSet<String>) -> String {
    words.iter().map(String::as_str).collect::<Vec<_>>().join(" ")
}

/// How many ancestors a process has inside the frame.
fn depth(manifest: &Manifest, process: &Process) -> usize {
    let parents: BTreeMap<Pid, Pid> = manifest.processes.iter().map(|process| (process.node.pid, process.node.ppid)).collect();
    let ancestors = std::iter::successors(parents.get(&process.node.pid), |parent| parents.get(parent));
    // A damaged tree may go in circles.
    ancestors.take(manifest.processes.len()).filter(|parent| parents.contains_key(parent)).count()
}

fn headline(process: &Process) -> String {
    let state = match process.life {
        Life::Running => "running".to_owned(),
        Life::Stopped(signal) => format!("stopped by signal {signal}"),
        Life::Zombie(status) => format!("dead, wait status {status:#x}"),
    };
    let threads = process.body.as_ref().map_or(String::new(), |body| format!(", {}", show::count(body.threads.len(), "thread", "threads")));
    format!("{} {}  {state}{threads}", process.node.pid, process.name)
}

fn memory(manifest: &Manifest, body: &Body, maps: bool) -> String {
    let space = &manifest.spaces[body.space];
    let total = space.mappings.iter().map(|mapping| mapping.end.saturating_sub(mapping.start)).sum();
    let shared = if body.shares.memory { ", shared with its parent" } else { "" };
    let mut out = format!("  memory  {}, {}{shared}\n", show::count(space.mappings.len(), "mapping", "mappings"), show::bytes(total));
    if maps {
        out += &mappings(space, &manifest.files);
    }
    out
}

fn mappings(space: &AddressSpace, files: &[FileEntry]) -> String {
    let row = |mapping: &Mapping| {
        let mark = |bit: i32, letter: char| if mapping.prot & bit != 0 { letter } else { '-' };
        let rights: String = [mark(libc::PROT_READ, 'r'), mark(libc::PROT_WRITE, 'w'), mark(libc::PROT_EXEC, 'x'), if mapping.shared { 's' } else { 'p' }].iter().collect();
        let range = format!("    {:x}-{:x}", mapping.start, mapping.end);
        vec![range, rights, show::bytes(mapping.end.saturating_sub(mapping.start)), format!("{:x}", mapping.offset), backing(mapping, files)]
    };
    show::table(&space.mappings.iter().map(row).collect::<Vec<_>>())
}

fn backing(mapping: &Mapping, files: &[FileEntry]) -> String {
    match &mapping.backing {
        Backing::Anonymous => "anonymous".to_owned(),
        Backing::HugePages(size) => format!("huge pages of {}", show::bytes(*size)),
        Backing::File(id) | Backing::Segment(id) => files.get(*id).map_or_else(|| "unknown file".to_owned(), file_in_words),
        Backing::Kernel(name) => name.clone(),
    }
}

fn file_in_words(file: &FileEntry) -> String {
    let path = file.path.display();
    match file.kind {
        FileKind::Deleted => format!("{path} (deleted, kept in the frame)"),
        FileKind::SharedAnonymous => "shared memory".to_owned(),
        FileKind::SystemV(id) => format!("System V segment {id}"),
        _ => path.to_string(),
    }
}

fn table_of_descriptors(manifest: &Manifest, body: &Body, all: &Value) -> String {
    let slots = all["tables"][body.table]["slots"].as_array().map_or(&[][..], Vec::as_slice);
    let shared = if body.shares.files { ", shared with its parent" } else { "" };
    let rows: Vec<Vec<String>> = slots.iter().map(|slot| descriptor(slot, &manifest.files, all)).collect();
    format!("  descriptors  {}{shared}\n{}", slots.len(), show::table(&rows))
}

/// The manifest as JSON is what all kinds of descriptors have in common.
fn descriptor(slot: &Value, files: &[FileEntry], all: &Value) -> Vec<String> {
    let description = slot["description"].as_u64().map_or(&Value::Null, |at| &all["descriptions"][at as usize]);
    let flags = description["flags"].as_i64().unwrap_or(0) as i32;
    let access = match flags & libc::O_ACCMODE {
        _ if flags & libc::O_PATH != 0 => "path only",
        libc::O_RDONLY => "read",
        libc::O_WRONLY => "write",
        _ => "read, write",
    };
    vec![format!("    {}", slot["fd"]), access.to_owned(), what(description, files)]
}

fn what(description: &Value, files: &[FileEntry]) -> String {
    let (kind, state) = match description["kind"].as_object().and_then(|kinds| kinds.iter().next()) {
        Some((kind, state)) => (kind.as_str(), state),
        None => ("file", description),
    };
    let file = state["file"].as_u64().and_then(|id| files.get(id as usize));
    let words = |key: &str| state[key].as_str().unwrap_or("?").to_owned();
    match (kind, file) {
        (_, Some(file)) => format!("{} at {}", file_in_words(file), description["position"]),
        ("kernel", _) => words("path"),
        ("pipe", _) => format!("pipe {}", state["pipe"]),
        ("unix", _) => "unix socket".to_owned(),
        ("inet", _) => inet(state),
        ("netlink", _) => "netlink socket".to_owned(),
        ("event", _) => format!("eventfd at {}", state["count"]),
        ("epoll" | "inotify", _) => format!("{kind} set"),
        ("timer" | "signal", _) => format!("{kind}fd"),
        ("terminal", _) => format!("pseudo terminal {}, {} side", state["terminal"], if state["master"] == true { "master" } else { "program" }),
        ("process", _) => "process descriptor".to_owned(),
        ("external", _) => format!("{}, outside the frame", words("what")),
        _ => "something outside the frame".to_owned(),
    }
}

fn inet(state: &Value) -> String {
    let kind = match state["kind"].as_i64() {
        Some(1) => "TCP socket",
        Some(2) => "UDP socket",
        _ => "internet socket",
    };
    state["local"].as_str().map_or(kind.to_owned(), |address| format!("{kind} on {address}"))
}

/// What must be there at a restore, because the frame does not hold it.
fn files(entries: &[FileEntry]) -> String {
    let needed = entries.iter().filter(|file| file.content.is_none() && !file.needs_content());
    let rows: Vec<Vec<String>> = needed.map(|file| vec![format!("  {}", file.path.display()), use_of(file)]).collect();
    format!("\nfiles it depends on\n{}", show::table(&rows))
}

fn use_of(file: &FileEntry) -> String {
    let kind = match file.kind {
        FileKind::Directory => "directory",
        FileKind::Device => "device",
        FileKind::Fifo => "named pipe",
        FileKind::Socket => "socket",
        _ => "",
    };
    let words = [(kind, true), ("code", file.code), ("mapped", file.mapped && !file.code), ("written", file.written)];
    words.iter().filter(|(word, holds)| *holds && !word.is_empty()).map(|(word, _)| *word).collect::<Vec<_>>().join(", ")
}
