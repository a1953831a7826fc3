//! The store for one machine: a file in a directory, under a lock. Agents of virtual nodes share it; a second host is refused.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::time::{clock_gettime, ClockId};
use serde::{Deserialize, Serialize};

use super::{Change, Entry, Event, Guard, Lease, Revision, Snapshot, State, Watch};
use crate::error::{Context, Error, Kind, Result};

/// How many changes are kept for watches that come late.
const LOG: usize = 2000;
/// How often a watch looks for changes.
const LOOK: Duration = Duration::from_millis(10);
/// How often it looks for leases that have ended, which no write tells.
const EXPIRE: Duration = Duration::from_millis(100);

/// A directory that holds cluster state.
#[derive(Debug, Clone)]
pub struct Local {
    dir: PathBuf,
    host: String,
    boot: String,
}

/// All of it.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    /// Whose it is.
    host: String,
    /// Since which start of the machine leases count.
    boot: String,
    revision: Revision,
    entries: BTreeMap<String, Entry>,
    leases: BTreeMap<Lease, Term>,
    log: Vec<Event>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Term {
    ttl_ms: u64,
    /// When it ends, in milliseconds of the boot-time clock.
    ends_ms: u64,
}

impl Local {
    /// The state in `dir`, which is made if it is missing.
    pub fn open(dir: &Path) -> Result<Local> {
        let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        let machine = read("/etc/machine-id");
        let host = if machine.is_empty() { read("/proc/sys/kernel/hostname") } else { machine };
        Local::open_as(dir, &host, &read("/proc/sys/kernel/random/boot_id"))
    }

    /// The same for a host of this identity, at this boot.
    pub fn open_as(dir: &Path, host: &str, boot: &str) -> Result<Local> {
        fs::create_dir_all(dir).at("create", dir)?;
        let local = Local { dir: dir.to_owned(), host: host.to_owned(), boot: boot.to_owned() };
        local.with(|_| Ok(()))?;
        Ok(local)
    }

    fn file(&self) -> PathBuf {
        self.dir.join("state.json")
    }

    /// Runs `act` on the content, alone; writes it back if the revision or a lease changed.
    fn with<T>(&self, act: impl FnOnce(&mut Content) -> Result<T>) -> Result<T> {
        let path = self.dir.join("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode_private().open(&path).at("open", &path)?;
        let _lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| e).at("lock", &path)?;
        let mut content = self.read()?;
        let before = serde_json::to_vec(&content).unwrap_or_default();
        content.expire(now_ms()?);
        let done = act(&mut content)?;
        let after = serde_json::to_vec(&content).map_err(|e| Error::new(Kind::Io, format!("cannot write cluster state: {e}")))?;
        if after != before {
            let new = self.dir.join("state.new");
            fs::write(&new, after).at("write", &new)?;
            fs::rename(&new, self.file()).at("rename", &new)?;
        }
        Ok(done)
    }

    fn read(&self) -> Result<Content> {
        let path = self.file();
        let mut content: Content = match fs::read(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Content { host: self.host.clone(), boot: self.boot.clone(), ..Content::default() },
            text => serde_json::from_slice(&text.at("read", &path)?).map_err(|e| Error::corrupt(format!("{}: {e}", path.display())))?,
        };
        if content.host != self.host {
            let what = format!("{} belongs to another host; a local store serves one machine: use store = \"etcd\" for several", self.dir.display());
            return Err(Error::refused(what));
        }
        if content.boot != self.boot {
            // No lease outlives the machine that counted it.
            content.leases.values_mut().for_each(|term| term.ends_ms = 0);
            content.boot.clone_from(&self.boot);
        }
        Ok(content)
    }

    /// Tells one version of the file from the next.
    fn version(&self) -> Option<(u64, i64, i64)> {
        let meta = self.file().metadata().ok()?;
        Some((meta.ino(), meta.mtime(), meta.mtime_nsec()))
    }
}

/// Opens files for their owner alone.
trait Private {
    fn mode_private(&mut self) -> &mut Self;
}

impl Private for OpenOptions {
    fn mode_private(&mut self) -> &mut Self {
        std::os::unix::fs::OpenOptionsExt::mode(self, 0o600)
    }
}

fn now_ms() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).context("cannot read the clock")?;
    Ok(now.tv_sec() as u64 * 1000 + now.tv_nsec() as u64 / 1_000_000)
}

impl Content {
    fn expire(&mut self, now_ms: u64) {
        let ended: Vec<Lease> = self.leases.iter().filter(|(_, term)| term.ends_ms <= now_ms).map(|(lease, _)| *lease).collect();
        ended.into_iter().for_each(|lease| self.end(lease));
    }

    fn end(&mut self, lease: Lease) {
        self.leases.remove(&lease);
        let keys: Vec<String> = self.entries.values().filter(|entry| entry.lease == lease).map(|entry| entry.key.clone()).collect();
        if !keys.is_empty() {
            self.revision += 1;
            keys.iter().for_each(|key| self.delete(key));
        }
    }

    fn holds(&self, guard: &Guard) -> bool {
        match guard {
            Guard::Absent(key) => !self.entries.contains_key(key),
            Guard::Created(key, revision) => self.entries.get(key).map_or(0, |entry| entry.created) == *revision,
            Guard::Modified(key, revision) => self.entries.get(key).map_or(0, |entry| entry.modified) == *revision,
        }
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Delete(key) => self.delete(key),
            Change::Put(key, value, lease) => {
                let created = self.entries.get(key).map_or(self.revision, |entry| entry.created);
                let entry = Entry { key: key.clone(), value: value.clone(), created, modified: self.revision, lease: *lease };
                self.entries.insert(key.clone(), entry.clone());
                self.note(Event { revision: self.revision, key: key.clone(), entry: Some(entry) });
            }
        }
    }

    fn delete(&mut self, key: &str) {
        if self.entries.remove(key).is_some() {
            self.note(Event { revision: self.revision, key: key.to_owned(), entry: None });
        }
    }

    fn note(&mut self, event: Event) {
        self.log.push(event);
        let surplus = self.log.len().saturating_sub(LOG);
        self.log.drain(..surplus);
    }

    /// What came after a revision.
    fn since(&self, prefix: &str, after: Revision) -> Result<Vec<Event>> {
        let reaches_back = self.log.len() < LOG || self.log.first().is_some_and(|first| first.revision <= after + 1);
        if !reaches_back {
            return Err(Error::new(Kind::Busy, "the watch began too far in the past"));
        }
        Ok(self.log.iter().filter(|event| event.revision > after && event.key.starts_with(prefix)).cloned().collect())
    }
}

impl State for Local {
    fn range(&self, prefix: &str) -> Result<Snapshot> {
        self.with(|content| {
            let entries = content.entries.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix)).map(|(_, entry)| entry.clone()).collect();
            Ok(Snapshot { revision: content.revision, entries })
        })
    }

    fn commit(&self, guards: &[Guard], changes: &[Change]) -> Result<Option<Revision>> {
        self.with(|content| {
            if !guards.iter().all(|guard| content.holds(guard)) {
                return Ok(None);
            }
            let lost = |change: &Change| matches!(change, Change::Put(_, _, lease) if *lease != 0 && !content.leases.contains_key(lease));
            if changes.iter().any(lost) {
                return Err(Error::new(Kind::TargetGone, "the lease that a key was to end with has ended itself"));
            }
            content.revision += 1;
            changes.iter().for_each(|change| content.apply(change));
            Ok(Some(content.revision))
        })
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>> {
        Ok(Box::new(Look { local: self.clone(), prefix: prefix.to_owned(), after, seen: None }))
    }

    fn grant(&self, ttl: Duration) -> Result<Lease> {
        let ttl_ms = ttl.as_millis() as u64;
        let ends_ms = now_ms()? + ttl_ms;
        self.with(|content| {
            content.revision += 1;
            let lease = content.revision;
            content.leases.insert(lease, Term { ttl_ms, ends_ms });
            Ok(lease)
        })
    }

    fn renew(&self, lease: Lease) -> Result<bool> {
        let now = now_ms()?;
        self.with(|content| {
            let term = content.leases.get_mut(&lease);
            Ok(term.map(|term| term.ends_ms = now + term.ttl_ms).is_some())
        })
    }

    fn revoke(&self, lease: Lease) -> Result<()> {
        self.with(|content| {
            content.end(lease);
            Ok(())
        })
    }
}

/// A watch that looks again and again.
struct Look {
    local: Local,
    prefix: String,
    after: Revision,
    seen: Option<(u64, i64, i64)>,
}

impl Watch for Look {
    fn next(&mut self) -> Result<Vec<Event>> {
        let due = Instant::now() + EXPIRE;
        loop {
            let version = self.local.version();
            if version != self.seen || Instant::now() > due {
                self.seen = version;
                let (revision, events) = self.local.with(|content| Ok((content.revision, content.since(&self.prefix, self.after)?)))?;
                self.after = revision;
                if !events.is_empty() || Instant::now() > due {
                    return Ok(events);
                }
            }
            std::thread::sleep(LOOK);
        }
    }
}
