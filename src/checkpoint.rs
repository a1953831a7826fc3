//! Taking a frame: survey → freeze → capture → split → thaw → transfer → commit.
//!
//! Whatever fails, the target runs on as if we had never come; nothing is visible in the store before the commit.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use crate::error::{Context, Error, Kind, Result};
use crate::hooks::{Event, Hooks};
use crate::host::Host;
use crate::image::{Compression, Header};
use crate::manifest::{Manifest, Taking};
use crate::proc::{self, maps, stat, Pid};
use crate::resource::contents::{Content, Contents};
use crate::resource::fd::{scan::Room, CaptureOptions};
use crate::resource::memory::{page_ranges, Mapping, Pages, Survey};
use crate::sys::sched::Urgent;
use crate::store::{FrameRef, Store};
use crate::tracee::memory::Memory;
use crate::tracee::seize::{tree, Frozen};
use crate::tracee::twin::Twin;
use crate::tracee::visit::{Site, Visit};
use crate::transfer::{self, Feed, How};

mod capture;

use capture::Captured;

/// How memory is frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// The best that this kernel has.
    #[default]
    Auto,
    /// Write-protect tracking; for now the same as `Fork`.
    Track,
    /// A forked twin holds the pages.
    Fork,
}

/// What becomes of the target when its frame is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Then {
    /// It runs on.
    #[default]
    Run,
    /// It stays stopped (SIGSTOP).
    Stop,
    /// It ends at the very instant of the frame.
    Kill,
}

/// Which regular files that the target may write are kept with the frame.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SaveFiles {
    /// None.
    #[default]
    None,
    /// All.
    All,
    /// Those whose path matches a pattern with `*` and `?`.
    Matching(String),
}

/// How to take a frame.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The frame's name; default: the command name of the process.
    pub name: Option<String>,
    /// How memory is frozen.
    pub method: Method,
    /// What becomes of the target.
    pub then: Then,
    /// How pages are compressed.
    pub compression: Compression,
    /// Store the program and all mapped files, for hosts that lack them.
    pub self_contained: bool,
    /// Keep the content of files open for writing.
    pub save_files: SaveFiles,
    /// What may lead outside the tree.
    pub descriptors: CaptureOptions,
    /// Commands run at events.
    pub hooks: Hooks,
}

/// A frame taken.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Report {
    /// Its reference in the store.
    #[serde(serialize_with = "as_text")]
    pub frame: FrameRef,
    /// Processes in it.
    pub processes: usize,
    /// How long the tree stood still, in nanoseconds.
    pub pause_ns: u64,
    /// From the start to the frame safe on storage, in nanoseconds.
    pub durable_ns: u64,
    /// Pages of 4096 bytes that hold data.
    pub pages: u64,
    /// Pages that are zero and take no room.
    pub zero_pages: u64,
    /// Length of the frame's file in bytes.
    pub bytes: u64,
    /// Things worth a line.
    pub notes: Vec<String>,
}

fn as_text<S: serde::Serializer>(frame: &FrameRef, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(frame)
}

/// Takes a frame of process `pid` and all its descendants into `store`.
pub fn checkpoint(pid: Pid, store: &dyn Store, options: &Options) -> Result<Report> {
    let started = Instant::now();
    let name = options.name.clone().map_or_else(|| default_name(pid), Ok)?;
    let mut surveys = survey(pid)?;
    let pending = store.begin(&name)?;
    let spool = pending.path().parent().unwrap_or(Path::new(".")).to_owned();
    let mut contents = Contents::new(spool);
    let Instance { mut captured, sources, hold, pause_ns, host } = freeze(pid, &mut surveys, &mut contents, options)?;
    let streamed = (|| {
        let mut writer = pending.writer(&Header::new(None))?;
        captured.save_code(options.self_contained, &mut contents)?;
        let how = How { compression: options.compression };
        let (totals, guards) = transfer::run(&mut writer, &how, |feed| feed_all(feed, &sources, &contents.list))?;
        Ok::<_, Error>((writer, totals, guards))
    })();
    // Success or not, the twins end first: they hold the target's memory.
    let hold = hold.end_twins();
    let (writer, totals, guards) = streamed?;
    let hold = hold?;
    captured.note_guards(&guards);
    captured.files.note_build_ids();
    let notes = captured.descriptors.notes.clone();
    let manifest = Manifest {
        name,
        taken_ns: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, nanos),
        taking: Taking { method: "fork".to_owned(), pause_ns, pages: totals.pages, zero_pages: totals.zero_pages },
        host,
        processes: captured.processes,
        spaces: captured.spaces,
        descriptors: captured.descriptors,
        files: captured.files.entries,
    };
    let written = writer.finish(&manifest.to_bytes()?)?;
    let frame = store.commit(pending, &written)?;
    // Only now: had anything failed, the tree would have run on.
    hold.finish(options.then);
    let report = Report {
        processes: manifest.processes.len(),
        pause_ns: manifest.taking.pause_ns,
        durable_ns: nanos(started.elapsed()),
        pages: totals.pages,
        zero_pages: totals.zero_pages,
        bytes: written.bytes,
        notes,
        frame,
    };
    options.hooks.run(Event::Committed, pid, Some(&report.frame.to_string()))?;
    Ok(report)
}

fn default_name(pid: Pid) -> Result<String> {
    let comm = proc::text(&proc::path(pid, "comm")).map_err(|_| no_such(pid))?;
    Ok(comm.trim().chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect::<String>().trim_start_matches('.').to_owned())
}

fn no_such(pid: Pid) -> Error {
    Error::new(Kind::NotFound, format!("pid {pid}: no such process"))
}

/// Before the pause: whether there is anything to freeze, and what takes long to read.
fn survey(root: Pid) -> Result<HashMap<Pid, Survey>> {
    let stat = stat::read(root).map_err(|_| no_such(root))?;
    if stat.is_kernel_thread() {
        return Err(Error::refused(format!("pid {root} is a thread of the kernel; only user programs can be checkpointed")));
    }
    if stat.is_zombie() {
        return Err(Error::refused(format!("pid {root} is a zombie: it has exited and waits for its parent {} to notice", stat.ppid)));
    }
    let leader = crate::proc::status::Status::read(root)?.number("Tgid")?;
    if leader != i64::from(root) {
        return Err(Error::refused(format!("{root} is a thread of process {leader}; checkpoint that")));
    }
    if root == std::process::id() as Pid || tree(root)?.contains(&(std::process::id() as Pid)) {
        return Err(Error::refused(format!("pid {root} is this very command or an ancestor of it; run stillframe from outside the tree")));
    }
    // What cannot be read now is refused, or is gone, at the freeze.
    Ok(tree(root)?.into_iter().filter_map(|pid| Some((pid, Survey::of(pid).ok()?))).collect())
}

/// The instant: what was captured, and who holds the pages.
struct Instance {
    captured: Captured,
    sources: Vec<SpaceSource>,
    hold: Hold,
    pause_ns: u64,
    host: Host,
}

/// The frozen memory of one address space.
#[derive(Debug)]
struct SpaceSource {
    /// Its object in the frame.
    object: u32,
    /// The stopped process to read it from.
    pid: Pid,
    /// The mappings whose private pages go into the frame.
    mappings: Vec<Mapping>,
}

/// Who holds the frame's pages until they are read.
enum Hold {
    /// Copies; the target runs.
    Twins(Vec<Twin>),
    /// The target itself, which is not to run again (`Then::Stop`, `Then::Kill`). Dropped, it runs on.
    Target(Frozen),
}

impl Hold {
    fn end_twins(self) -> Result<Hold> {
        match self {
            Hold::Twins(twins) => twins.into_iter().try_for_each(Twin::end).map(|()| Hold::Twins(Vec::new())),
            target => Ok(target),
        }
    }

    fn finish(self, then: Then) {
        match (self, then) {
            (Hold::Target(frozen), Then::Kill) => frozen.kill(),
            (Hold::Target(frozen), Then::Stop) => frozen.thaw_stopped(),
            _ => {}
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos().try_into().unwrap_or(u64::MAX)
}

/// Stops the tree, captures it, splits off its memory, and lets it go.
fn freeze(root: Pid, surveys: &mut HashMap<Pid, Survey>, contents: &mut Contents, options: &Options) -> Result<Instance> {
    let mut host = Host::here()?;
    // Room for duplicates of the target's descriptors: growing our table is slow, and would be so in the pause.
    let _room = Room::make();
    // On a busy machine the target would stand still while others run.
    let urgent = Urgent::begin();
    let (mut frozen, begun) = seize(root)?;
    options.hooks.run(Event::Frozen, root, None)?;
    host.read_clocks(root)?;
    let captured = capture::capture(&mut frozen, surveys, contents, options)?;
    let (sources, hold) = match options.then {
        Then::Run => {
            let (sources, twins) = split(&mut frozen, &captured)?;
            frozen.thaw();
            (sources, Hold::Twins(twins))
        }
        Then::Stop | Then::Kill => (captured.sources(), Hold::Target(frozen)),
    };
    let pause_ns = nanos(begun.elapsed());
    drop(urgent);
    if let Hold::Twins(twins) = &hold {
        twins.iter().try_for_each(Twin::drop_descriptors)?;
        options.hooks.run(Event::Resumed, root, None)?;
    }
    Ok(Instance { captured, sources, hold, pause_ns, host })
}

/// Feeds all pages and contents; returns guard ranges (object, start, length) met on the way.
fn feed_all(feed: &mut Feed<'_>, spaces: &[SpaceSource], contents: &[Content]) -> Result<Vec<(u32, u64, u64)>> {
    let mut all = Vec::new();
    for space in spaces {
        let memory = Memory::open(space.pid)?;
        let path = proc::path(space.pid, "pagemap");
        let pagemap = File::open(&path).at("open", &path)?;
        for mapping in &space.mappings {
            let Pages { data, guards } = page_ranges(&pagemap, mapping)?;
            all.extend(guards.into_iter().map(|(start, end)| (space.object, start, end - start)));
            feed.memory(space.object, &memory, &data, 0)?;
        }
    }
    contents.iter().try_for_each(|content| feed.content(content))?;
    Ok(all)
}

/// Stops the tree, and says when that began; waits out threads that cannot be stopped just now, or that a dead checkpointer left on their way home.
fn seize(root: Pid) -> Result<(Frozen, Instant)> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let begun = Instant::now();
        match Frozen::seize(root) {
            Ok(frozen) if !on_the_way_home(&frozen)? => return Ok((frozen, begun)),
            Ok(frozen) => frozen.thaw(),
            Err(e) if e.kind() != Kind::Busy || Instant::now() > deadline => return Err(e),
            Err(_) => {}
        }
        if Instant::now() > deadline {
            return Err(Error::refused(format!("pid {root}: another stillframe is at work in it; wait until that is done")));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn on_the_way_home(frozen: &Frozen) -> Result<bool> {
    for process in frozen.processes.iter().filter(|process| !process.is_zombie()) {
        let site = Site::find(process.pid, &maps::read(&proc::path(process.pid, "maps"))?)?;
        if process.threads.iter().any(|thread| site.contains(thread.regs.rip)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Forks a twin of every address space, and says where each one's pages are now.
fn split(frozen: &mut Frozen, captured: &Captured) -> Result<(Vec<SpaceSource>, Vec<Twin>)> {
    let mut sources = captured.sources();
    let mut twins = Vec::new();
    for source in &mut sources {
        let owner = frozen.processes.iter_mut().find(|process| process.pid == source.pid);
        let thread = owner.and_then(|process| process.threads.first_mut()).ok_or_else(|| crate::tracee::gone(source.pid))?;
        let mut visit = Visit::begin(source.pid, thread, captured.sites[&source.pid])?;
        let twin = Twin::fork(&mut visit, captured.kin[&source.pid])?;
        source.pid = twin.pid;
        twins.push(twin);
    }
    Ok((sources, twins))
}
