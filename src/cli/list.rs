//! `stillframe list`.

use super::{json, show, StoreArgs};
use crate::catalog::{self, Descent, Entry};
use crate::error::{Error, Kind, Result};

/// List the frames of the store, the newest last
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only the frames of this name
    name: Option<String>,
    #[command(flatten)]
    store: StoreArgs,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// Lists.
pub fn run(args: &Args) -> Result<i32> {
    let store = args.store.open()?;
    let entries = catalog::list(&store, args.name.as_deref())?;
    if let (Some(name), true) = (&args.name, entries.is_empty()) {
        let root = store.root().display();
        return Err(Error::new(Kind::NotFound, format!("there is no frame of {name} in the store {root}; `stillframe list` shows all names")));
    }
    if args.json {
        println!("{}", json(&entries)?);
    } else if entries.is_empty() {
        println!("no frames in {}", store.root().display());
    } else {
        print!("{}", show::table(&rows(&entries)));
    }
    Ok(0)
}

fn rows(entries: &[Entry]) -> Vec<Vec<String>> {
    let head = ["FRAME", "AGE", "SIZE", "KIND", "IN ALL", "PAUSE", "PROCESSES", "PAGES", "STATE"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(entries.iter().map(row));
    rows
}

fn row(entry: &Entry) -> Vec<String> {
    let [pause, processes, pages] = match &entry.content {
        Some(content) => [show::millis(content.pause_ns), content.processes.to_string(), content.pages.to_string()],
        None => ["-"; 3].map(str::to_owned),
    };
    let (kind, total) = match &entry.chain {
        Some(chain) => (kind(chain), show::bytes(chain.bytes)),
        None => ("-".to_owned(), "-".to_owned()),
    };
    let state = entry.problem.as_ref().map_or("intact".to_owned(), |problem| format!("not readable: {problem}"));
    vec![entry.frame.to_string(), show::age(entry.taken_ns), show::bytes(entry.bytes), kind, total, pause, processes, pages, state]
}

fn kind(chain: &Descent) -> String {
    match &chain.parent {
        Some(parent) => format!("on {parent}"),
        None if chain.increment => "on a lost frame".to_owned(),
        None => "full".to_owned(),
    }
}
