//! System V shared memory calls on the caller's own ipc namespace.

use std::io;

use super::check;

/// Ownership and size of a segment.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Segment {
    /// Its key; 0 is IPC_PRIVATE.
    pub key: i32,
    /// Size in bytes.
    pub size: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits and SHM_DEST.
    pub mode: u32,
    /// How many mappings exist.
    pub attached: u64,
}

/// What segment `id` is.
pub fn stat(id: i32) -> io::Result<Segment> {
    // SAFETY: an all-zero shmid_ds is a valid output buffer, and it is live.
    let ds = unsafe {
        let mut ds: libc::shmid_ds = std::mem::zeroed();
        check(libc::shmctl(id, libc::IPC_STAT, &mut ds).into())?;
        ds
    };
    let perm = ds.shm_perm;
    Ok(Segment { key: perm.__key, size: ds.shm_segsz as u64, uid: perm.uid, gid: perm.gid, mode: u32::from(perm.mode), attached: ds.shm_nattch })
}

/// Who uses a segment, as far as the kernel notes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// How many mappings exist.
    pub attached: u64,
    /// When one was last made, and when one last ended, in whole seconds since 1970.
    times: (i64, i64),
    /// Who did that last.
    by: i32,
    /// When this was asked.
    asked: i64,
}

impl Use {
    /// How segment `id` is used now.
    pub fn now(id: i32) -> io::Result<Use> {
        let clock = || nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME_COARSE).map(|now| now.tv_sec());
        let asked = clock()?;
        // SAFETY: as in `stat`.
        let ds = unsafe {
            let mut ds: libc::shmid_ds = std::mem::zeroed();
            check(libc::shmctl(id, libc::IPC_STAT, &mut ds).into())?;
            ds
        };
        Ok(Use { attached: ds.shm_nattch, times: (ds.shm_atime, ds.shm_dtime), by: ds.shm_lpid, asked })
    }

    /// Whether nobody has made or ended a mapping between this answer and a `later` one. In the second of the last change there may
    /// be another one that does not show.
    pub fn is_unchanged(&self, later: &Use) -> bool {
        let same = (self.attached, self.times, self.by) == (later.attached, later.times, later.by);
        same && self.times.0.max(self.times.1) < self.asked
    }
}

/// Creates a segment; fails if the key is taken.
pub fn create(key: i32, size: u64, mode: u32) -> io::Result<i32> {
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | (mode & 0o777) as i32;
    // SAFETY: plain numbers.
    check(unsafe { libc::shmget(key, size as usize, flags) }.into()).map(|id| id as i32)
}

/// Sets owner, group and permissions.
pub fn set_owner(id: i32, segment: &Segment) -> io::Result<()> {
    // SAFETY: as in `stat`.
    unsafe {
        let mut ds: libc::shmid_ds = std::mem::zeroed();
        check(libc::shmctl(id, libc::IPC_STAT, &mut ds).into())?;
        ds.shm_perm.uid = segment.uid;
        ds.shm_perm.gid = segment.gid;
        ds.shm_perm.mode = (segment.mode & 0o777) as _;
        check(libc::shmctl(id, libc::IPC_SET, &mut ds).into()).map(drop)
    }
}

/// Marks a segment for removal at its last detach.
pub fn remove(id: i32) -> io::Result<()> {
    // SAFETY: plain numbers; IPC_RMID ignores the buffer.
    check(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) }.into()).map(drop)
}

/// What the last page holds behind the segment's `size` bytes.
pub fn tail(id: i32, size: u64) -> io::Result<Vec<u8>> {
    let end = size.next_multiple_of(super::PAGE);
    if end == size {
        return Ok(Vec::new());
    }
    with_mapping(id, end, |memory| memory[size as usize..].to_vec())
}

/// Runs `fill` on a mapping of the whole segment.
pub fn with_mapping<T>(id: i32, size: u64, fill: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
    // SAFETY: shmat maps the whole segment of `size` bytes, and nothing else in this process uses that mapping until shmdt.
    unsafe {
        let address = libc::shmat(id, std::ptr::null(), 0);
        if address as isize == -1 {
            return Err(io::Error::last_os_error());
        }
        let result = fill(std::slice::from_raw_parts_mut(address.cast(), size as usize));
        libc::shmdt(address);
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_in_the_same_second_is_not_ruled_out() {
        let then = Use { attached: 1, times: (10, 5), by: 7, asked: 10 };
        assert!(!then.is_unchanged(&Use { asked: 20, ..then }));
        let then = Use { asked: 11, ..then };
        assert!(then.is_unchanged(&Use { asked: 20, ..then }));
        assert!(!then.is_unchanged(&Use { attached: 2, ..then }) && !then.is_unchanged(&Use { times: (12, 5), ..then }) && !then.is_unchanged(&Use { by: 8, ..then }));
    }
}
