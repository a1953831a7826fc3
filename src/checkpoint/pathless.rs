//! Contents that no path leads to, as of the instant: the last pages of shared memory that is watched, all of anything else.

use super::capture::Captured;
use super::instant::Job;
use crate::error::Result;
use crate::sys::PAGE;

/// Copies what the frame lacks of contents without a path; returns how many pages of watched memory that were.
pub fn keep(captured: &mut Captured, job: &mut Job<'_>) -> Result<u64> {
    let mut pages = 0;
    for id in 0..captured.files.entries.len() {
        let entry = &captured.files.entries[id];
        if !entry.needs_content() || entry.content.is_some() {
            continue;
        }
        let rest = job.watch.shared().rest(entry);
        if let Some((object, memory, todo)) = rest.filter(|(_, _, todo)| job.aside.held() + todo.bytes() <= job.options.memory_limit) {
            job.aside.place(object, &todo, job.generation, |bytes| memory.read(todo.as_slice(), bytes))?;
            pages += todo.bytes() / PAGE;
            captured.files.keep_in(id, object)?;
            job.watch.shared().stored(object);
        }
    }
    captured.files.save_pathless(job.contents)?;
    Ok(pages)
}
