//! TEMPORARY
pub mod restore;
use std::os::fd::AsFd;
use serde::{Deserialize, Serialize};
use crate::error::Result;
use crate::proc::{self, Pid};
use crate::resource::files::{FileTable, FileId, FileKind};
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Description { pub flags: i32, pub position: i64, pub file: Option<FileId> }
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Slot { pub fd: i32, pub cloexec: bool, pub description: usize }
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Table { pub slots: Vec<Slot> }
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Descriptors { pub descriptions: Vec<Description>, pub tables: Vec<Table>, pub notes: Vec<String> }
#[derive(Debug, Clone, Default)]
pub struct CaptureOptions { pub tree: Vec<Pid>, pub external_close: bool, pub tcp_close: bool }
pub fn capture(holders: &[Pid], files: &mut FileTable, _options: &CaptureOptions) -> Result<Descriptors> {
    let mut d = Descriptors::default();
    for &pid in holders {
        let mut t = Table::default();
        for fd in proc::numbers(&proc::path(pid, "fd"))? {
            let info = proc::text(&proc::path(pid, &format!("fdinfo/{fd}")))?;
            let get = |k: &str| info.lines().find_map(|l| l.strip_prefix(k)).map(|s| s.trim().to_owned()).unwrap_or_default();
            let flags = i32::from_str_radix(&get("flags:"), 8).unwrap_or(0);
            let is_path = proc::link(&proc::path(pid, &format!("fd/{fd}")))?.starts_with("/");
            let id = Some(()).filter(|_| is_path).and_then(|_| files.intern(pid, &format!("fd/{fd}")).ok()).filter(|id| matches!(files.entries[*id].kind, FileKind::Regular | FileKind::Device | FileKind::Directory | FileKind::Memfd(_) | FileKind::Deleted));
            d.descriptions.push(Description { flags, position: get("pos:").parse().unwrap_or(0), file: id });
            t.slots.push(Slot { fd, cloexec: flags & libc::O_CLOEXEC != 0, description: d.descriptions.len() - 1 });
        }
        d.tables.push(t);
    }
    Ok(d)
}
