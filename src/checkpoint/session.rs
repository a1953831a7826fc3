//! Frames of one tree, one after the other. Between them the watch over its memory stays, so that each frame but the first may
//! hold only what was written since the one before.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use super::aside::Aside;
use super::calls::Calls;
use super::instant::{self, Hold, Instance, Job};
use super::precopy::{self, Rounds, Stop};
use super::watch::Watch;
use super::{Method, Options, Report, Then};
use crate::error::{Error, Result};
use crate::hooks::Event;
use crate::image::{FrameId, FrameWriter, Header};
use crate::manifest::{Manifest, Taking};
use crate::proc::Pid;
use crate::resource::contents::Contents;
use crate::resource::memory::Survey;
use crate::store::{FrameRef, Store};
use crate::tracee::pager;
use crate::track;
use crate::transfer::{self, Feed, How, Totals};

/// A tree of which frames are taken. Dropped, it leaves the tree as if we had never come.
#[derive(Debug)]
pub struct Session {
    root: Pid,
    options: Options,
    watch: Option<Watch>,
    surveys: HashMap<Pid, Survey>,
    calls: Calls,
    last: Option<(FrameId, FrameRef)>,
    notes: Vec<String>,
}

/// What one pass of the transfer leaves behind, besides the pages in the frame.
struct Taken {
    instance: Instance,
    rounds: Rounds,
    guards: Vec<(u32, u64, u64)>,
    stopped_ns: u64,
}

impl Session {
    /// Frames of process `root` and all its descendants. Nothing is done to them yet; a second instance whose memory is still
    /// on its way is waited for, because nobody can watch what its pager watches.
    pub fn new(root: Pid, options: Options) -> Result<Session> {
        pager::wait(root)?;
        let mut notes = Vec::new();
        let watch = match (options.method, track::is_sound()) {
            (Method::Fork, _) => None,
            (_, Ok(())) => Some(Watch::default()),
            (Method::Track, Err(e)) => return Err(Error::refused(format!("--method track: {e}; use --method auto or fork"))),
            (Method::Auto, Err(e)) => {
                notes.push(format!("{e}; memory is frozen by a fork"));
                None
            }
        };
        Ok(Session { root, options, watch, surveys: HashMap::new(), calls: Calls::default(), last: None, notes })
    }

    /// What becomes of the tree when the next frame is taken.
    pub fn then(&mut self, then: Then) {
        self.options.then = then;
    }

    /// Takes a frame into `store`; with `increment` it holds only what was written since the last one of this session, if there
    /// is one.
    pub fn frame(&mut self, store: &dyn Store, increment: bool) -> Result<Report> {
        let started = Instant::now();
        let name = self.options.name.clone().map_or_else(|| super::default_name(self.root), Ok)?;
        super::survey(self.root, &mut self.surveys)?;
        let mut notes = std::mem::take(&mut self.notes);
        let mut unwatched = Watch::default();
        let tracking = self.watch.is_some();
        let watch = self.watch.as_mut().unwrap_or(&mut unwatched);
        let (arming_ns, mut unarmed) = if tracking { watch.arm(self.root, &mut self.calls)? } else { (0, Vec::new()) };
        notes.append(&mut unarmed);
        let parent = self.last.clone().filter(|(_, frame)| increment && store.list(Some(&name)).is_ok_and(|frames| frames.contains(frame)));
        let pending = store.begin(&name)?;
        let mut contents = Contents::new(pending.path().parent().unwrap_or(Path::new(".")).to_owned());
        watch.number(&mut contents);
        let header = Header::new(parent.as_ref().map(|parent| parent.0));
        let mut writer = pending.writer(&header)?;
        let mut making = Making { root: self.root, options: &self.options, watch, calls: &mut self.calls, surveys: &mut self.surveys, contents: &mut contents };
        let how = How { compression: self.options.compression, rate_limit: self.options.rate_limit, progress: self.options.progress.clone() };
        let (totals, taken) = transfer::run(&mut writer, &how, |feed| making.make(feed, parent.is_none()))?;
        let Taken { instance, rounds, guards, stopped_ns } = taken;
        // The twins end first: they hold the target's memory.
        let Instance { mut captured, live, hold, pause_ns, thawed, host, copied, notes: mut more, .. } = instance;
        let twins = matches!(&hold, Hold::Twins(twins) if !twins.is_empty());
        let hold = hold.end_twins()?;
        notes.append(&mut more);
        lay_out(&mut writer, watch, &live, parent.is_some())?;
        captured.note_guards(&guards);
        captured.files.note_build_ids();
        notes.extend(captured.descriptors.notes.iter().cloned());
        let method = match (live.is_empty(), twins) {
            (true, _) => "fork",
            (false, true) => "track+fork",
            (false, false) => "track",
        };
        let manifest = Manifest {
            name,
            taken_ns: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, super::nanos),
            taking: Taking { method: method.to_owned(), pause_ns, pages: totals.pages, zero_pages: totals.zero_pages },
            host,
            processes: captured.processes,
            spaces: captured.spaces,
            descriptors: captured.descriptors,
            files: captured.files.entries,
        };
        let written = writer.finish(&manifest.to_bytes()?)?;
        let frame = store.commit(pending, &written)?;
        // Only now: had anything failed, the tree would have run on, and the next frame would hold what this one was to.
        hold.finish(self.options.then);
        watch.committed(&live.iter().map(|(object, _)| *object).collect::<Vec<_>>());
        self.last = Some((header.id, frame.clone()));
        self.options.hooks.run(Event::Committed, self.root, Some(&frame.to_string()))?;
        let Totals { pages, zero_pages, .. } = totals;
        let durable_ns = super::nanos(started.elapsed());
        Ok(Report { frame, parent: parent.map(|parent| parent.1), processes: manifest.processes.len(), method, rounds: rounds.count, copied, arming_ns: arming_ns + stopped_ns, pause_ns, durable_ns, lag_ns: super::nanos(thawed.elapsed()), pages, zero_pages, bytes: written.bytes, transfer: totals, notes })
    }
}

/// The part of a frame that feeds pages.
struct Making<'a> {
    root: Pid,
    options: &'a Options,
    watch: &'a mut Watch,
    calls: &'a mut Calls,
    surveys: &'a mut HashMap<Pid, Survey>,
    contents: &'a mut Contents,
}

impl Making<'_> {
    fn make(&mut self, feed: &mut Feed<'_>, full: bool) -> Result<Taken> {
        let mut aside = Aside::default();
        let mut stop = Stop { root: self.root, calls: self.calls, took: Duration::ZERO };
        let mut rounds = precopy::large_rounds(self.watch, feed, &mut aside, full, &mut stop, self.options.memory_limit)?;
        if rounds.count > 0 {
            // That took its time: have mappings changed?
            super::survey(self.root, self.surveys)?;
        }
        precopy::small_rounds(self.watch, &mut aside, &mut rounds, &mut stop, self.options.memory_limit)?;
        let stopped_ns = super::nanos(stop.took);
        let objects = self.watch.objects();
        for (pid, survey) in self.surveys.iter_mut() {
            survey.tracked = objects.get(pid).copied();
        }
        let mut job = Job {
            root: self.root,
            options: self.options,
            watch: self.watch,
            calls: self.calls,
            surveys: self.surveys,
            contents: self.contents,
            aside: &mut aside,
            expected: rounds.expected,
            generation: rounds.count,
        };
        let mut instance = instant::freeze(&mut job)?;
        instance.captured.learn_flags(self.surveys)?;
        instance.captured.save_code(self.options.self_contained, self.contents)?;
        let contents: u64 = self.contents.list.iter().map(|content| content.len).sum();
        feed.announce(rounds.count, aside.held() + instant::size_of(&instance.rest) + contents)?;
        aside.feed(feed)?;
        let guards = instant::feed_rest(feed, self.watch, &instance.rest, &mut instance.live, rounds.count)?;
        self.contents.list.iter().try_for_each(|content| feed.content(content))?;
        Ok(Taken { instance, rounds, guards, stopped_ns })
    }
}

/// Says what of the copied pages counts, and what is to be found in the parent.
fn lay_out(writer: &mut FrameWriter, watch: &mut Watch, live: &[(u32, track::Ranges)], increment: bool) -> Result<()> {
    for space in watch.spaces() {
        let addresses = live.iter().find(|(object, _)| *object == space.object).map(|(_, addresses)| addresses.as_slice());
        writer.clip(space.object, addresses.unwrap_or_default())?;
        if let Some(base) = space.base.filter(|_| increment) {
            for &(start, end) in addresses.unwrap_or_default() {
                writer.parent(space.object, start, end - start, base)?;
            }
        }
    }
    watch.shared().lay_out(writer, increment)
}
