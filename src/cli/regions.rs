//! What `stillframe inspect` shows of a linked program's snapshot.

use std::path::Path;

use super::{json, show};
use crate::error::Result;
use crate::record::Record;

/// Shows.
pub fn show(as_json: bool, path: &Path, record: &Record) -> Result<i32> {
    match as_json {
        true => println!("{}", json(record)?),
        false => print!("{}", text(path, record)),
    }
    Ok(0)
}

fn text(path: &Path, record: &Record) -> String {
    let (program, taking) = (&record.program, &record.taking);
    let labels: Vec<String> = record.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut facts = vec![
        ("frame", format!("{} ({})", record.name, path.display())),
        ("taken", format!("{} ago by {}, held up {}", show::age(record.taken_ns), taking.method, show::millis(taking.pause_ns))),
        ("program", format!("process {} {} on {}", program.pid, program.command, program.hostname)),
        ("state", show::bytes(record.state_len)),
    ];
    if !labels.is_empty() {
        facts.push(("labels", labels.join(" ")));
    }
    let facts: Vec<Vec<String>> = facts.into_iter().map(|(key, value)| vec![key.to_owned(), value]).collect();
    let mut regions = vec![["REGION", "SIZE", "ADDRESS", "LEFT OUT"].map(str::to_owned).to_vec()];
    regions.extend(record.regions.iter().map(|area| {
        let left_out = area.excluded.iter().map(|(_, len)| len).sum();
        vec![area.name.clone(), show::bytes(area.len), format!("{:#x}", area.address), show::bytes(left_out)]
    }));
    show::table(&facts) + "\n" + &show::table(&regions)
}
